"""How sure a search is: intervals of its weights, the signal of each source's score over its noise, and sources it cannot tell apart.

Everything here looks at ONE trajectory. What another seed would give is asked of several searches; see `seeds.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fastmix_data.arrays import Bools, Float64s
from fastmix_data.results.mixture import Certainty
from fastmix_data.results.trajectory import Trajectory
from train.proxy.losses import sampling_weights
from train.scores.shrinkage import less_the_mixtures

_TINY = 1e-300
_FEWEST_UPDATES = 8  # below this, a spread over updates says nothing
_SCORE_MARGIN, _LOSS_MARGIN = 0.5, 0.25
_CHUNK = 64


@dataclass(frozen=True)
class Evidence:
    """What a search saw of each source at each update: U updates, K sources, sums over the update's scored batch.

    Attributes:
        centred_UK: alignment less that of the mixture on the same batch, so that what all sources share cancels.
        divisor_UK: what alignments are divided by; 0 where a source was absent.
        loss_UK: training losses.
    """

    centred_UK: Float64s
    divisor_UK: Float64s
    loss_UK: Float64s

    @classmethod
    def of(cls, trajectory: Trajectory, *, exploration: float) -> Evidence:
        """Read it off a trajectory."""
        rows = trajectory.rows
        after_UK = np.array([row.weights for row in rows])
        # A row has the weights after its update, but its evidence was drawn under those before. Those before the first row are
        # not in the trajectory; its own stand in for them, one move off.
        weights_UK = np.concatenate([after_UK[:1], after_UK[:-1]])
        alignment_UK, divisor_UK = np.array([row.alignment for row in rows]), np.array([row.divisor for row in rows])
        factor_UK = weights_UK / np.maximum([sampling_weights(p_K, exploration=exploration) for p_K in weights_UK], _TINY)
        centred_UK = [
            less_the_mixtures(alignment_K, divisor_K, importance_K=factor_K)
            for alignment_K, divisor_K, factor_K in zip(alignment_UK, divisor_UK, factor_UK, strict=True)
        ]
        return cls(np.array(centred_UK), divisor_UK, np.array([row.loss for row in rows]))

    def since(self, update: int) -> Evidence:
        """The part from an update on."""
        return Evidence(self.centred_UK[update:], self.divisor_UK[update:], self.loss_UK[update:])

    @property
    def known_K(self) -> Bools:
        """Sources seen at enough updates to speak of a spread."""
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


def evidence_block(num_updates: int) -> int:
    """Length of a block of raw evidence: U^(1/3), best for a variance (Hall, Horowitz and Jing, 1995); each update has fresh data."""
    return max(1, round(float(num_updates ** (1 / 3))))


def signal_to_noise(evidence: Evidence) -> Float64s:
    """Mean of a source's score less the mixture's, over its block-bootstrap standard error, shape (K,).

    Below 2 in size the search cannot tell the source from the mixture: either there is too little evidence, or the mixture stands where
    more of the source would neither help nor hurt, as it does for the sources that an optimum is made of. 0 for a source that was hardly
    seen.
    """
    if len(evidence.centred_UK) < _FEWEST_UPDATES:
        return np.zeros(evidence.centred_UK.shape[1])
    score_K, influence_UK = ratio_and_influence(evidence.centred_UK, evidence.divisor_UK)
    variance_K = (block_means(influence_UK, block=evidence_block(len(influence_UK))) ** 2).sum(axis=0)
    certain_K = evidence.known_K & (variance_K > 0)
    ratio_K: Float64s = np.where(certain_K, score_K / np.sqrt(np.where(certain_K, variance_K, 1.0)), 0.0)
    return ratio_K


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
    block = evidence_block(num_updates)
    freedom = 1.5 * (num_updates / block - 1)  # of overlapping blocks, Meketon and Schmeiser
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
    interval: dict[str, tuple[float, float]],
    averaged_since: float,
    exploration: float,
) -> Certainty:
    """What one trajectory says of its answer: signal to noise over the averaged part, interchangeable sources over all of it.

    Args:
        weights_K: the answer, which orders the groups.
        interval: of the answer's weights.
        averaged_since: step after which updates are averaged.
    """
    evidence = Evidence.of(trajectory, exploration=exploration)
    first = sum(row.step <= averaged_since for row in trajectory.rows)
    groups = groups_of_pairs(interchangeable_pairs(evidence), weights_K)
    averaged = evidence.since(first)
    # Of a handful of updates nothing can be said, and a row of zeros would say something.
    is_enough = len(averaged.centred_UK) >= _FEWEST_UPDATES
    return Certainty(
        interval=interval,
        signal_to_noise=dict(zip(sources, signal_to_noise(averaged).tolist(), strict=True)) if is_enough else {},
        interchangeable=[[sources[index] for index in group] for group in groups],
    )
