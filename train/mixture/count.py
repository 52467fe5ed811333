"""The mixture that is best by counts alone: a first answer before a proxy has seen a token.

A bigram model of each source says how likely a passage of the target is in that source. Were the sources' own models perfect, the best
model of a mixture would be the mixture of their models (Yu, Ren and others, "MDE", arXiv 2502.15950, proposition 3.1), so that the best
mixture maximises

    sum_n log sum_k p_k P_k(x_n)

over the passages x_n of the target, which is convex (MixMin, arXiv 2502.10510). A bigram model knows little, but what a hundred tokens in
a row say of their source adds up to what a better model would know from each of them.
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
from train.mixture.mixmin import mixmin_weights
from train.proxy.training import ProxyPlan

PASSAGE_TOKENS = 128
# Samples: counting takes seconds however large the corpus, and each of 512 sources still gives 131,072 tokens.
_MOST_TARGET_TOKENS, _MOST_TOKENS_OF_A_SOURCE, _MOST_TOKENS = 1 << 17, 1 << 20, 1 << 26
_SAMPLE_STREAM = 41


@dataclass(frozen=True, eq=False)
class Count:
    """How likely N passages of the target are in each source.

    Attributes:
        log_likelihoods_NK: nats, shape (N, K).
        labels_K: labels that carry loss per token of each source; 1 without masks.
        importance_N: weight of each passage, so that the sum of importance times log likelihood is nats per loss token.
        halves_SN: importance in either half of the target's documents, by several ways to halve them; a half is followed by the other
            one. A halving that the sample has no text of is left out, and all of them where a target has a single document.
    """

    log_likelihoods_NK: Float64s
    labels_K: Float64s
    importance_N: Float64s
    halves_SN: Float64s

    def of_half(self, number: int) -> Count:
        """Where the target is one of the halves of its documents."""
        return replace(self, importance_N=self.halves_SN[number])


def best_weights(count: Count, *, constraints: MixtureConstraints) -> Float64s:
    """The mixture within the constraints, shape (K,), under which the target's passages are likeliest."""
    used_N = count.importance_N > 0
    likelihoods = {"log_likelihoods_NK": count.log_likelihoods_NK[used_N], "importance_N": count.importance_N[used_N]}
    return mixmin_weights(**likelihoods, constraints=constraints, labels_K=count.labels_K)


def counted_weights(count: Count, *, constraints: MixtureConstraints) -> Float64s:
    """`best_weights` with no source entirely out of it, which no score could bring back; a thousandth of a share can still grow."""
    return constraints.concentrated(best_weights(count, constraints=constraints), 1)


def count_passages(plan: ProxyPlan, targets: Mapping[str, float], *, passage_tokens: int = PASSAGE_TOKENS) -> Count:
    """Count in the target's search half and in a sample of each source; the samples are fixed.

    Args:
        targets: weights of the targets by name, summing to 1.
        passage_tokens: longest passage; one ends with its sequence or example too.

    Raises:
        InputError: a source or target is smaller than one sequence.
    """
    catalog, length = plan.catalog, plan.training.sequence_length
    vocab_size, most = catalog.info.vocab_size, _MOST_TARGET_TOKENS // len(targets)
    reader = SequenceReader(catalog, sources=list(targets), split="valid", sequence_length=length, half="search")
    found = [_pairs(reader, number, most_tokens=most, vocab_size=vocab_size) for number in range(len(targets))]
    passages = [_passages(pairs, passage_tokens=passage_tokens) for pairs in found]
    runs = [
        runs_of_documents(reader, number, sequence_length=length, eos_id=catalog.info.eos_id) for number in range(len(targets))
    ]
    halvings_SJ = balanced_halvings(min(1 + int(run_N[-1]) for run_N in runs))
    importance, halves, has_text_S = [], [], np.ones(len(halvings_SJ), np.bool_)
    for weight, pairs, starts, run_N in zip(targets.values(), found, passages, runs, strict=True):
        # Each target counts by its weight, however long its text.
        tokens_N = np.diff(starts, append=len(pairs.keys_M))
        importance.append(np.full(len(starts), weight / len(pairs.keys_M)))
        in_half_SN = halvings_SJ[:, run_N[pairs.sequence_M[starts]] % halvings_SJ.shape[1]]
        tokens_S = in_half_SN @ tokens_N
        halves.append(weight * in_half_SN / np.maximum(tokens_S, 1)[:, None])
        has_text_S &= tokens_S > 0
    # Loss needs no pair that the target lacks, so what is kept of a source grows with the target and not with V^2.
    pairs_P, place_M = np.unique(np.concatenate([pairs.keys_M for pairs in found]), return_inverse=True)
    ends = np.cumsum([len(pairs.keys_M) for pairs in found])
    starts_N = np.concatenate(
        [starts + end - len(pairs.keys_M) for starts, end, pairs in zip(passages, ends, found, strict=True)]
    )

    sources = plan.training_data()
    num_sources = len(catalog.sources)
    most = min(_MOST_TOKENS_OF_A_SOURCE, _MOST_TOKENS // num_sources)
    log_likelihoods_NK = np.empty((len(starts_N), num_sources))
    labels_K = sources.mean_loss_tokens_K / length
    for source in range(num_sources):
        keys_M = _pairs(sources, source, most_tokens=most, vocab_size=vocab_size).keys_M
        log_chance_P = np.log(bigram_chances(keys_M, pairs_P, vocab_size=vocab_size))
        log_likelihoods_NK[:, source] = np.add.reduceat(log_chance_P[place_M], starts_N)
    # The sample may lack all documents of a half: where one is long and the others are short.
    told_S = has_text_S.reshape(-1, 2).all(axis=1).repeat(2)
    return Count(log_likelihoods_NK, labels_K, np.concatenate(importance), np.concatenate(halves, axis=1)[told_S])


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Of M labels that carry loss: a * V + b for a label b and the token a before it, the sequence it is from, and whether an example or a
    sequence begins there.
    """

    keys_M: Int64s
    sequence_M: Int64s
    begins_M: npt.NDArray[np.bool_]


def _pairs(reader: SequenceReader, source: int, *, most_tokens: int, vocab_size: int) -> _Pairs:
    """Those in a fixed sample of a source's sequences."""
    num_sequences, length = int(reader.num_sequences_K[source]), reader.sequence_length
    count = max(1, min(num_sequences, most_tokens // length))
    # Not by the search's seed: all its seeds start from the same counts.
    chosen_N = np.sort(permute(np.arange(count), size=num_sequences, key=derive_keys(_SAMPLE_STREAM, source)))
    # An example's first token carries no loss, so that no pair is of two examples. After an end of text the next document is predicted.
    tokens_NS, carries_loss_NT, positions_NT = reader.read(np.full(count, source, np.int64), chosen_N)
    wide_NS = tokens_NS.astype(np.int64)
    example_NT = np.zeros(carries_loss_NT.shape, np.int64) if positions_NT is None else np.cumsum(positions_NT == 0, axis=1)
    example_M = (example_NT + np.arange(count)[:, None] * (length + 1))[carries_loss_NT]
    begins_M = np.diff(example_M, prepend=-1) != 0
    keys_M: Int64s = (wide_NS[:, :-1] * vocab_size + wide_NS[:, 1:])[carries_loss_NT]
    return _Pairs(keys_M, np.repeat(chosen_N, carries_loss_NT.sum(axis=1)), begins_M)


def _passages(pairs: _Pairs, *, passage_tokens: int) -> Int64s:
    """Where passages begin: with a sequence or example, and every so many tokens after, shape (N,)."""
    first_M = np.flatnonzero(pairs.begins_M)
    since_M = np.arange(len(pairs.keys_M)) - np.repeat(first_M, np.diff(first_M, append=len(pairs.keys_M)))
    starts_N: Int64s = np.flatnonzero(since_M % passage_tokens == 0)
    return starts_N


def bigram_chances(keys_M: Int64s, pairs_P: Int64s, *, vocab_size: int) -> Float64s:
    """P(b | a) of pairs, each a * V + b, under the bigram model of a text of M pairs, shape (P,), all positive.

    By absolute discounting (Ney, Essen and Kneser, 1994): each kind of pair seen after a gives up a share D of one occurrence, and what is
    given up goes to all tokens by their own frequency, which is discounted towards uniform in the same way.
    """
    if not len(keys_M):
        return np.full(len(pairs_P), 1 / vocab_size)
    kinds, counts = np.unique(keys_M, return_counts=True)
    first, second = np.divmod(pairs_P, vocab_size)
    unigram_V = _unigram(np.bincount(keys_M % vocab_size, minlength=vocab_size))
    total_V = np.bincount(keys_M // vocab_size, minlength=vocab_size)
    kinds_V = np.bincount(kinds // vocab_size, minlength=vocab_size)
    discount = _discount(counts)
    place_P = np.minimum(np.searchsorted(kinds, pairs_P), len(kinds) - 1)
    seen_P = np.where(kinds[place_P] == pairs_P, counts[place_P] - discount, 0.0)
    total_P = np.maximum(total_V[first], 1)
    # A context that was never seen gives everything to the tokens' own frequency.
    freed_P = np.where(total_V[first] > 0, discount * kinds_V[first] / total_P, 1.0)
    chances_P: Float64s = seen_P / total_P + freed_P * unigram_V[second]
    return chances_P


def _unigram(counts_V: Int64s) -> Float64s:
    seen_V = counts_V > 0
    discount = _discount(counts_V[seen_V])
    freed = discount * seen_V.sum()
    chances_V: Float64s = (np.where(seen_V, counts_V - discount, 0.0) + freed / len(counts_V)) / counts_V.sum()
    return chances_V


def _discount(counts: Int64s) -> float:
    """D = n1 / (n1 + 2 n2), of kinds that were seen once and twice; a half where there are none of either, never all of an occurrence.

    >>> _discount(np.array([1, 1, 2, 7]))
    0.5
    """
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5
