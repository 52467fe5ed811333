"""How sure a search is: intervals of its weights, the signal of each source's score over its noise, and sources it cannot tell apart.

Everything here looks at ONE trajectory. What another seed would give is asked of several searches; see `seeds.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from fastmix_data.arrays import Bools, Float64s
from fastmix_data.results.mixture import Certainty
from fastmix_data.results.trajectory import Trajectory

_TINY = 1e-300
_FEWEST_UPDATES = 8  # below this, a spread over updates says nothing
_MEMORIES_APART = 3.0  # two updates that many memories of the target gradient apart share a twentieth of it
_SCORE_MARGIN, _LOSS_MARGIN = 0.5, 0.25
_CHUNK = 64


@dataclass(frozen=True)
class Evidence:
    """What a search saw of each source: U turns, K sources, sums over the scored sequences of a turn.

    Attributes:
        centred_UK: alignment less that of the mixture in the same turn, so that what all sources share cancels.
        divisor_UK: what alignments are divided by; 0 where a source was absent.
        loss_UK: training losses.
        span: neighbouring turns whose target gradients remember much of the same batches.
    """

    centred_UK: Float64s
    divisor_UK: Float64s
    loss_UK: Float64s
    span: float = 1.0

    @classmethod
    def of(cls, trajectory: Trajectory, *, scored_batch: int, target_memory: float, since: float = 0.0) -> Evidence:
        """Read it off a trajectory.

        Args:
            scored_batch: sequences scored at an update; sources take turns where there are more of them.
            target_memory: share of earlier target gradients that a score was made with.
            since: step from which on updates count.
        """
        rows = [row for row in trajectory.rows if row.step > since]
        num_sources = len(rows[0].weights)
        per_turn = -(-num_sources // scored_batch)
        turns = range(len(rows) // per_turn)
        sums_3UK = np.zeros((3, len(turns), num_sources))
        for turn in turns:
            of_turn = rows[turn * per_turn : (turn + 1) * per_turn]
            sums_3UK[:, turn] = [
                np.sum([getattr(row, name) for row in of_turn], axis=0) for name in ("alignment", "divisor", "loss")
            ]
        weights_UK = np.array([rows[turn * per_turn].weights for turn in turns]).reshape(len(turns), num_sources)
        alignment_UK, divisor_UK, loss_UK = sums_3UK
        mixture_U = (weights_UK * alignment_UK).sum(axis=1) / np.maximum((weights_UK * divisor_UK).sum(axis=1), _TINY)
        span = _MEMORIES_APART / (1 - target_memory) / per_turn
        return cls(alignment_UK - mixture_U[:, None] * divisor_UK, divisor_UK, loss_UK, span)

    @property
    def known_K(self) -> Bools:
        """Sources seen in enough turns to speak of a spread."""
        known_K: Bools = (self.divisor_UK > 0).sum(axis=0) >= _FEWEST_UPDATES
        return known_K


def averaged_weights(weights_UK: Float64s, *, num_resamples: int = 1000, seed: int = 0) -> tuple[Float64s, Float64s, Float64s]:
    """Average of a trajectory with a 90% interval from a moving-block bootstrap (Kunsch, 1989).

    Neighbouring updates resemble each other, so blocks of l = U^(1/2) of them are drawn, not single ones. Deviations are stretched by
    sqrt(U / (U - l)), for blocks deviate from an average that they are part of. It is the noise of this one trajectory.

    Args:
        weights_UK: weights after each averaged update, shape (U, K), U >= 1.

    Returns:
        mean, low and high, each of shape (K,), in [0, 1].
    """
    num_updates, num_sources = weights_UK.shape
    mean_K: Float64s = weights_UK.mean(axis=0)
    mean_K = mean_K / mean_K.sum()
    if num_updates == 1:
        return mean_K, mean_K, mean_K
    block = round(num_updates**0.5)
    # A resample is a mean of block means, each a difference of two running sums: no resampled series is ever made.
    starts = np.random.default_rng(seed).integers(0, num_updates - block + 1, (num_resamples, -(-num_updates // block)))
    sums_UK = np.concatenate([np.zeros((1, num_sources)), np.cumsum(weights_UK, axis=0)])
    stretch = (num_updates / (num_updates - block)) ** 0.5
    bounds = []
    for first in range(0, num_sources, _CHUNK):  # 1,000 resamples of 512 sources at once would take hundreds of megabytes
        part_UK = sums_UK[:, first : first + _CHUNK]
        means_RK = (part_UK[starts + block] - part_UK[starts]).mean(axis=1) / block
        bounds.append(np.percentile(means_RK, [5, 95], axis=0))
    low_K, high_K = mean_K + stretch * (np.concatenate(bounds, axis=1) - mean_K)
    # Percentiles of a few skewed blocks can both fall on one side of the mean; the interval is to contain it.
    return mean_K, np.clip(low_K, 0, mean_K), np.clip(high_K, mean_K, 1)


def block_means(series_UK: Float64s, *, block: int) -> Float64s:
    """Means of all U - l + 1 blocks of l neighbours, less the series' mean and scaled so that their products sum to the mean's covariance.

    x.T @ x is the covariance matrix of the series' mean, (x**2).sum(axis=0) its variances: what a moving-block bootstrap comes to with
    ever more resamples, with the factor for blocks that overlap (Meketon and Schmeiser, 1984). Shape (U - l + 1, K), l < U.
    """
    num_updates = len(series_UK)
    sums_UK = np.concatenate([np.zeros((1, series_UK.shape[1])), np.cumsum(series_UK, axis=0)])
    deviation_BK = (sums_UK[block:] - sums_UK[:-block]) / block - series_UK.mean(axis=0)
    scaled_BK: Float64s = deviation_BK * (block / ((num_updates - block) * (num_updates - block + 1))) ** 0.5
    return scaled_BK


def ratio_and_influence(sums_UK: Float64s, divisor_UK: Float64s) -> tuple[Float64s, Float64s]:
    """A ratio of sums over updates, shape (K,), and a series (U, K) whose mean has the ratio's sampling error.

    The series is (A_u - ratio D_u) / mean(D), the linearised ratio; it is 0 at updates where a source was absent.
    """
    ratio_K: Float64s = sums_UK.sum(axis=0) / np.maximum(divisor_UK.sum(axis=0), _TINY)
    return ratio_K, (sums_UK - ratio_K * divisor_UK) / np.maximum(divisor_UK.mean(axis=0), _TINY)


def evidence_block(evidence: Evidence) -> int:
    """Length of a block of evidence: U^(1/3), best for a variance (Hall, Horowitz and Jing, 1995), or the memory of target gradients.

    Every turn scores fresh sequences, but against a target gradient that is mostly the one before.
    """
    num_turns = len(evidence.centred_UK)
    return min(max(1, round(float(num_turns ** (1 / 3))), math.ceil(evidence.span)), max(1, num_turns // 2))


def _freedom(num_turns: int, block: int) -> float:
    """Degrees of freedom of a variance from overlapping blocks (Meketon and Schmeiser, 1984)."""
    return 1.5 * (num_turns / block - 1)


def signal_to_noise(evidence: Evidence) -> Float64s:
    """Mean of a source's score less the mixture's, over its block-bootstrap standard error, shape (K,).

    It is stretched to the normal distribution's scale, for the error is of few blocks: without a signal it is beyond 2 for one source in
    twenty. Below 2 in size the search cannot tell the source from the mixture: either there is too little evidence, or the mixture stands
    where more of the source would neither help nor hurt, as it does for the sources that an optimum is made of. 0 for a source that was
    hardly seen.
    """
    num_turns = len(evidence.centred_UK)
    if num_turns < _FEWEST_UPDATES:
        return np.zeros(evidence.centred_UK.shape[1])
    score_K, influence_UK = ratio_and_influence(evidence.centred_UK, evidence.divisor_UK)
    block = evidence_block(evidence)
    variance_K = (block_means(influence_UK, block=block) ** 2).sum(axis=0)
    certain_K = evidence.known_K & (variance_K > 0)
    ratio_K = np.where(certain_K, score_K / np.sqrt(np.where(certain_K, variance_K, 1.0)), 0.0)
    # By the smaller tail, which keeps its digits however far out it is.
    tail_K = np.maximum(stdtr(_freedom(num_turns, block), -np.abs(ratio_K)), _TINY)
    stretched_K: Float64s = -np.sign(ratio_K) * ndtri(tail_K)
    return stretched_K


def interchangeable_pairs(evidence: Evidence) -> Bools:
    """Which pairs of sources the whole search cannot tell apart, symmetric, shape (K, K), False on the diagonal.

    A noisy score differs from nothing, so equality has to be shown, not merely left unrefuted. All of these must hold:

    - the 95% interval of the difference of their scores contains 0;
    - its 90% interval lies within half the standard deviation of all sources' scores: two one-sided tests (Schuirmann, 1987);
    - the 90% interval of the difference of their training losses lies within a quarter of the spread of losses.

    The evidence must be of the whole trajectory, not of its averaged part: at the best mixture the scores of ALL sources in it are equal,
    and complementary ones differ only on the way there. Different data that help the target equally are told apart by their losses.
    """
    num_updates, num_sources = evidence.centred_UK.shape
    known_K = evidence.known_K
    if num_updates < _FEWEST_UPDATES or known_K.sum() < 2:
        return np.zeros((num_sources, num_sources), dtype=bool)
    block = evidence_block(evidence)
    freedom = _freedom(num_updates, block)
    two_sided, one_sided = (float(stdtrit(freedom, level)) for level in (0.975, 0.95))
    pairs_KK = known_K[:, None] & known_K & ~np.eye(num_sources, dtype=bool)
    for sums_UK, margin, is_score in ((evidence.centred_UK, _SCORE_MARGIN, True), (evidence.loss_UK, _LOSS_MARGIN, False)):
        ratio_K, influence_UK = ratio_and_influence(sums_UK, evidence.divisor_UK)
        # Relative to how far sources differ here: scores and losses have no scale by which a difference is small.
        means_BK, limit = block_means(influence_UK, block=block), margin * float(ratio_K[known_K].std())
        for first in range(0, num_sources, _CHUNK):
            rows = slice(first, first + _CHUNK)
            size_RK = np.abs(ratio_K[rows, None] - ratio_K)
            error_RK = _errors_of_differences(means_BK, rows)
            pairs_KK[rows] &= size_RK + one_sided * error_RK <= limit
            if is_score:
                pairs_KK[rows] &= size_RK <= two_sided * error_RK
    return pairs_KK


def _errors_of_differences(means_BK: Float64s, rows: slice) -> Float64s:
    """Standard errors of the paired differences between some sources and all."""
    variance_K = (means_BK**2).sum(axis=0)
    # Paired: two sources were scored against the same target batch, whose noise cancels in their difference.
    variance_RK = variance_K[rows, None] + variance_K - 2 * means_BK[:, rows].T @ means_BK
    # A copy of a source differs from it by 0, which rounding may make negative.
    errors_RK: Float64s = np.sqrt(np.maximum(variance_RK, 0))
    return errors_RK


def groups_of_pairs(pairs_KK: Bools, weights_K: Float64s) -> list[list[int]]:
    """Disjoint groups in which every pair is interchangeable; heavy sources choose theirs first, and nobody is in a group alone."""
    groups: list[list[int]] = []
    # Being interchangeable is not transitive, so groups are cliques and not connected parts: a chain may join opposites.
    for source in np.argsort(-weights_K, kind="stable").tolist():
        if not pairs_KK[source].any():
            continue
        for group in groups:
            if pairs_KK[source, group].all():
                group.append(source)
                break
        else:
            groups.append([source])
    return [group for group in groups if len(group) > 1]


def certainty_of(
    trajectory: Trajectory,
    *,
    sources: Sequence[str],
    weights_K: Float64s,
    averaged_since: float,
    scored_batch: int,
    target_memory: float,
) -> Certainty:
    """What one trajectory says: signal to noise over the averaged part, interchangeable sources over all of it.

    Args:
        weights_K: the answer, which orders the groups.
        averaged_since: step after which updates are averaged.
        scored_batch, target_memory: of the search.
    """
    evidence = Evidence.of(trajectory, scored_batch=scored_batch, target_memory=target_memory)
    averaged = Evidence.of(trajectory, scored_batch=scored_batch, target_memory=target_memory, since=averaged_since)
    groups = groups_of_pairs(interchangeable_pairs(evidence), weights_K)
    # Of a handful of updates nothing can be said, and a row of zeros would say something.
    is_enough = len(averaged.centred_UK) >= _FEWEST_UPDATES
    return Certainty(
        signal_to_noise=dict(zip(sources, signal_to_noise(averaged).tolist(), strict=True)) if is_enough else {},
        interchangeable=[[sources[index] for index in group] for group in groups],
    )
