"""The mixture that is best for a bigram model: a first answer from counts alone, before a proxy has seen a token.

With f_k(a, b) the frequency of a pair of neighbouring tokens per token of source k, a bigram model of N tokens of the mixture p predicts

    P(b | a) = (N sum_k p_k f_k(a, b) + C P(b)) / (N sum_k p_k f_k(a) + C),    P(b) = (N sum_k p_k f_k(b) + c / V) / (N sum_k p_k f_k + c)

that is, it backs off to the unigram as if each context had been seen C times more (MacKay and Peto, "A Hierarchical Dirichlet Language
Model", 1995). The target's loss under it is smooth in p and exact, so that gradient descent on it has no noise. Counting needs pairs
of the target only, whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Float64s, Int64s
from fastmix_data.permutation import derive_keys, permute
from fastmix_data.shards.sequences import SequenceReader
from train.mixture.constraints import MixtureConstraints
from train.mixture.halvings import balanced_halvings, runs_of_documents
from train.mixture.simplex import uniform
from train.proxy.training import ProxyPlan

_CONTEXT_STRENGTH, _TOKEN_STRENGTH = 30.0, 1000.0  # C and c
# Samples: counting takes seconds however large the corpus, and each of 512 sources still gives 131,072 tokens.
_MOST_TARGET_TOKENS, _MOST_TOKENS_OF_A_SOURCE, _MOST_TOKENS = 1 << 17, 1 << 20, 1 << 26
_SAMPLE_STREAM = 41
_MOST_OF_COUNTED = 1 / 4  # N over the tokens that were counted of a source
_MOST_MOVES, _TOLERANCE = 500, 3e-4  # nats that no direction may promise in the end
_SMALLEST_RATE = 1e-6
_TINY = 1e-300


@dataclass(frozen=True)
class BigramCounts:
    """What the target's loss under a bigram model depends on; M distinct pairs in the target, of A first and B second tokens.

    Attributes:
        importance_M: share of each pair in the target, summing to 1.
        halves_SM: the same in either half of the target's documents, by several ways to halve them; a half is followed by the other one.
            Of none where a target has a single document.
        first_M, second_M: place of each pair's tokens in the arrays below.
        pairs_KM, firsts_KA, seconds_KB: occurrences per token of each source, as a pair, a context and a label.
        labels_K: labels that carry loss per token of each source; 1 without masks.
        vocab_size: V.
        num_counted: tokens read of the source of which most were.
    """

    importance_M: Float64s
    halves_SM: Float64s
    first_M: Int64s
    second_M: Int64s
    pairs_KM: npt.NDArray[np.float32]
    firsts_KA: Float64s
    seconds_KB: Float64s
    labels_K: Float64s
    vocab_size: int
    num_counted: int

    def of_half(self, number: int) -> BigramCounts:
        """Where the target is one of the halves of its documents."""
        return replace(self, importance_M=self.halves_SM[number])


def count_bigrams(plan: ProxyPlan, targets: Mapping[str, float]) -> BigramCounts:
    """Count in the target's search half and in a sample of each source; the samples are fixed.

    Args:
        targets: weights of the targets by name, summing to 1.

    Raises:
        InputError: a source or target is smaller than one sequence.
    """
    catalog, length = plan.catalog, plan.training.sequence_length
    vocab_size = catalog.info.vocab_size
    target_reader = SequenceReader(catalog, sources=list(targets), split="valid", sequence_length=length, half="search")
    most = _MOST_TARGET_TOKENS // len(targets)
    found = [
        _pairs(target_reader, number, most_tokens=most, length=length, vocab_size=vocab_size) for number in range(len(targets))
    ]
    runs = [
        runs_of_documents(target_reader, number, sequence_length=length, eos_id=catalog.info.eos_id)
        for number in range(len(targets))
    ]
    halvings_SJ = balanced_halvings(min(1 + int(run_N[-1]) for run_N in runs))
    # Loss and gradient need no pair that the target lacks, so the arrays grow with the target and not with V^2.
    pairs_M, inverse = np.unique(np.concatenate([pairs.keys_N for pairs in found]), return_inverse=True)
    importance_M, halves_SM = np.zeros(len(pairs_M)), np.zeros((len(halvings_SJ), len(pairs_M)))
    ends = np.cumsum([len(pairs.keys_N) for pairs in found])[:-1]
    for weight, pairs, place_N, run_N in zip(targets.values(), found, np.split(inverse, ends), runs, strict=True):
        # Each target is made a distribution before it is weighted: its share is the recipe's, however long its text.
        importance_M += weight * _shares(place_N, len(pairs_M))
        group_N = run_N[pairs.sequence_N] % halvings_SJ.shape[1]
        for importance_of_half_M, half_J in zip(halves_SM, halvings_SJ, strict=True):
            importance_of_half_M += weight * _shares(place_N[half_J[group_N]], len(pairs_M))
    firsts_A, first_M = np.unique(pairs_M // vocab_size, return_inverse=True)
    seconds_B, second_M = np.unique(pairs_M % vocab_size, return_inverse=True)

    num_sources = len(catalog.sources)
    reader = plan.training_data()
    most = min(_MOST_TOKENS_OF_A_SOURCE, _MOST_TOKENS // num_sources)
    counts = BigramCounts(
        importance_M=importance_M,
        halves_SM=halves_SM,
        first_M=first_M,
        second_M=second_M,
        pairs_KM=np.zeros((num_sources, len(pairs_M)), np.float32),
        firsts_KA=np.zeros((num_sources, len(firsts_A))),
        seconds_KB=np.zeros((num_sources, len(seconds_B))),
        labels_K=np.zeros(num_sources),
        vocab_size=vocab_size,
        num_counted=length * max(_num_read(reader, source, most_tokens=most, length=length) for source in range(num_sources)),
    )
    for source in range(num_sources):
        pairs = _pairs(reader, source, most_tokens=most, length=length, vocab_size=vocab_size)
        found_N, num_tokens = pairs.keys_N, pairs.num_tokens
        # Sorted once and looked up by bisection: a table of all pairs would have V^2 entries, and most of them are not asked for.
        found_N.sort()
        ends = np.searchsorted(found_N, pairs_M, side="right") - np.searchsorted(found_N, pairs_M)
        # All per token read, masked ones too: weights are shares of sequences, and a masked source brings fewer pairs with each.
        counts.pairs_KM[source] = ends / num_tokens
        counts.firsts_KA[source] = np.bincount(found_N // vocab_size, minlength=vocab_size)[firsts_A] / num_tokens
        counts.seconds_KB[source] = np.bincount(found_N % vocab_size, minlength=vocab_size)[seconds_B] / num_tokens
        counts.labels_K[source] = len(found_N) / num_tokens
    return counts


def _shares(place_N: Int64s, num_places: int) -> Float64s:
    """How often each place occurs, summing to 1."""
    shares_M: Float64s = np.bincount(place_N, minlength=num_places) / max(1, len(place_N))
    return shares_M


@dataclass(frozen=True)
class _Pairs:
    """a * V + b for each label b that carries loss and the token a before it, and the sequence it is from; tokens of all sequences."""

    keys_N: Int64s
    sequence_N: Int64s
    num_tokens: int


def _pairs(reader: SequenceReader, source: int, *, most_tokens: int, length: int, vocab_size: int) -> _Pairs:
    """Those in a fixed sample of a source's sequences."""
    num_sequences = int(reader.num_sequences_K[source])
    count = _num_read(reader, source, most_tokens=most_tokens, length=length)
    # Not by the search's seed: all its seeds start from the same counts.
    chosen_N = np.sort(permute(np.arange(count), size=num_sequences, key=derive_keys(_SAMPLE_STREAM, source)))
    # An example's first token carries no loss, so that no pair is of two examples. After an end of text the next document is predicted.
    tokens_NS, carries_loss_NT, _ = reader.read(np.full(count, source, np.int64), chosen_N)
    wide_NS = tokens_NS.astype(np.int64)
    keys: Int64s = (wide_NS[:, :-1] * vocab_size + wide_NS[:, 1:])[carries_loss_NT]
    return _Pairs(keys, np.repeat(chosen_N, carries_loss_NT.sum(axis=1)), count * length)


def _num_read(reader: SequenceReader, source: int, *, most_tokens: int, length: int) -> int:
    return max(1, min(int(reader.num_sequences_K[source]), most_tokens // length))


def loss_and_gradient(counts: BigramCounts, weights_K: Float64s, *, num_tokens: float) -> tuple[float, Float64s]:
    """The target's loss in nats per token under the bigram model of `num_tokens` of a mixture, and its derivative in the weights."""
    c, big_c, n = _TOKEN_STRENGTH, _CONTEXT_STRENGTH, float(num_tokens)  # as in the formula above
    # Back-off: of a context seen n_a times, C / (n_a + C) of the probability is the unigram's, whatever the context.
    seen = n * (weights_K @ counts.labels_K) + c
    unigram_B = (n * (weights_K @ counts.seconds_KB) + c / counts.vocab_size) / seen
    unigram_M = unigram_B[counts.second_M]
    # Weights go to float32, not the pairs to float64: that would copy the largest array at every move.
    numerator_M = n * (weights_K.astype(np.float32) @ counts.pairs_KM).astype(np.float64) + big_c * unigram_M
    context_A = n * (weights_K @ counts.firsts_KA) + big_c
    loss = -float(counts.importance_M @ (np.log(numerator_M) - np.log(context_A)[counts.first_M]))

    # d log P / dp_k = (what k adds to the pair) / numerator - (what k adds to the context) / denominator; the unigram is in the numerator.
    by_numerator_M = counts.importance_M / numerator_M
    by_second_B = np.bincount(counts.second_M, weights=by_numerator_M, minlength=len(unigram_B))
    by_first_A = np.bincount(counts.first_M, weights=counts.importance_M, minlength=len(context_A)) / context_A
    from_pairs_K = n * (counts.pairs_KM @ by_numerator_M.astype(np.float32)).astype(np.float64)
    from_unigram_K = big_c * n / seen * (counts.seconds_KB @ by_second_B - (by_numerator_M @ unigram_M) * counts.labels_K)
    gradient_K: Float64s = n * (counts.firsts_KA @ by_first_A) - from_pairs_K - from_unigram_K
    return loss, gradient_K


def best_weights(
    counts: BigramCounts, *, num_tokens: float, constraints: MixtureConstraints, tolerance: float = _TOLERANCE
) -> Float64s:
    """The mixture within the constraints, shape (K,), with the lowest loss of a bigram model of `num_tokens` or a part of those counted.

    By mirror descent from the projection of uniform: exponentiated gradient, projected in every move, at a rate that grows while it
    gains and halves otherwise.
    """
    num_tokens = min(num_tokens, _MOST_OF_COUNTED * counts.num_counted)
    # Not convex (contexts enter with the other sign), so which minimum is found depends on the start: always uniform.
    weights_K, rate = constraints.project(uniform(len(counts.labels_K))), 1.0
    loss, gradient_K = loss_and_gradient(counts, weights_K, num_tokens=num_tokens)
    for _ in range(_MOST_MOVES):
        # Not the gain of a move: a short one gains little, and sources that are nearly out come back slowly.
        if rate < _SMALLEST_RATE or constraints.promise(weights_K, gradient_K) < tolerance:
            break
        exponent_K = -rate * gradient_K
        trial_K = weights_K * np.exp(exponent_K - exponent_K.max())
        # A factor never brings back a weight of exactly 0.
        trial_K = constraints.project(np.maximum(trial_K / trial_K.sum(), _TINY))
        trial_loss, trial_gradient_K = loss_and_gradient(counts, trial_K, num_tokens=num_tokens)
        if trial_loss > loss:
            rate /= 2
        else:
            weights_K, loss, gradient_K, rate = trial_K, trial_loss, trial_gradient_K, 1.5 * rate
    return weights_K
