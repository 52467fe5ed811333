"""What paired trials say: how much better each mixture is at the length of production, and how likely it is the best.

In round r every mixture c that is still in the race trains a proxy from the same seed for L_r steps. Its loss is taken to be

    y_cr = m_r + f_c (L_r / H)^-g + noise,

m_r being what all proxies of a round share, f_c the difference at the horizon H, and g how fast differences shrink as proxies read more:
short trials exaggerate. g is not told by trials of one length, so it has a prior. All of it is a linear model for a given g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmix_data.arrays import Float64s, Int64s

# Of twelve differences between mixtures of the benchmark corpus, the exponent from 0.6 M to 3 M tokens was 0.2 to 1.
_EXPONENT, _EXPONENT_SPREAD = 0.5, 0.3
_EXPONENTS = np.linspace(0, 1.5, 16)
_SPREAD = 0.3  # nats; of differences before any trial: wide, so that trials decide
_SHARED_FREEDOM = 2.0  # a length with few trials takes its noise from the others, which count as so many of its own
_TINY_NOISE = 1e-6  # nats
_SURE = 0.9  # that another mixture is better than the first, to leave that for it
_NUM_DRAWS, _SEED = 4000, 0


@dataclass(frozen=True)
class Trial:
    """One proxy, trained from scratch on one of the mixtures. JSON-able.

    Attributes:
        candidate: name of the mixture.
        round: trials of a round share seed, length and the target sequences they are measured on.
        num_steps: optimiser steps.
        loss: of the target's search half, in nats per loss token.
    """

    candidate: str
    round: int
    num_steps: int
    loss: float


@dataclass(frozen=True, eq=False)
class Verdict:
    """Posterior of the differences between mixtures at the horizon.

    Attributes:
        names: of the mixtures.
        draws_NC: losses less their mean over mixtures, in nats, N draws.
        noise: standard deviation of one trial's loss beside what its round shares, of the longest trials, in nats.
        exponent: mean of g.
    """

    names: tuple[str, ...]
    draws_NC: Float64s
    noise: float
    exponent: float

    @property
    def probability_C(self) -> Float64s:
        """How likely each mixture is the best, shape (C,), sum 1."""
        best_N = self.draws_NC.argmin(axis=1)
        shares_C: Float64s = np.bincount(best_N, minlength=len(self.names)) / len(best_N)
        return shares_C

    @property
    def winner(self) -> str:
        """The likeliest best of the mixtures that are better than the first with 90% certainty; the first where none is."""
        better_C = (self.draws_NC < self.draws_NC[:, :1]).mean(axis=0)
        likely_C = np.where(better_C >= _SURE, self.probability_C, -1.0)
        return self.names[int(likely_C.argmax())] if likely_C.max() >= 0 else self.names[0]

    def difference(self, first: str, second: str) -> tuple[float, float, float]:
        """Loss of the first mixture less that of the second: mean, and the ends of the 90% interval."""
        place = {name: number for number, name in enumerate(self.names)}
        apart_N = self.draws_NC[:, place[first]] - self.draws_NC[:, place[second]]
        low, high = np.percentile(apart_N, [5, 95])
        return float(apart_N.mean()), float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Table:
    """The trials as arrays over T of them."""

    candidate_T: Int64s
    round_T: Int64s
    steps_T: Float64s
    loss_T: Float64s

    @property
    def centred_T(self) -> Float64s:
        """Losses less the mean of their round."""
        return self.loss_T - _means(self.loss_T, self.round_T)


def judge(trials: Sequence[Trial], *, names: Sequence[str], horizon_steps: float) -> Verdict:
    """The posterior after two rounds or more.

    Args:
        names: mixtures, each of which has a trial.
        horizon_steps: length of production in steps of the proxy.
    """
    rounds = sorted({trial.round for trial in trials})
    place = {name: number for number, name in enumerate(names)}
    table = _Table(
        candidate_T=np.array([place[trial.candidate] for trial in trials]),
        round_T=np.array([rounds.index(trial.round) for trial in trials]),
        steps_T=np.array([trial.num_steps for trial in trials], np.float64),
        loss_T=np.array([trial.loss for trial in trials]),
    )
    scales = [(table.steps_T / horizon_steps) ** -exponent for exponent in _EXPONENTS]
    middle = int(np.abs(_EXPONENTS - _EXPONENT).argmin())
    noise_T, freedom = _noise(table, scales[middle], num_candidates=len(names))
    posteriors = [_posterior(table, scale_T, noise_T, num_candidates=len(names)) for scale_T in scales]
    log_weight_E = np.array([evidence for _, _, evidence in posteriors])
    log_weight_E = log_weight_E - ((_EXPONENTS - _EXPONENT) / _EXPONENT_SPREAD) ** 2 / 2
    weight_E = np.exp(log_weight_E - log_weight_E.max())
    weight_E /= weight_E.sum()
    return Verdict(
        names=tuple(names),
        draws_NC=_draws(posteriors, weight_E, freedom=freedom),
        noise=float(noise_T[table.steps_T == table.steps_T.max()].mean()),
        exponent=float(weight_E @ _EXPONENTS),
    )


def _means(values_T: Float64s, group_T: Int64s) -> Float64s:
    """Each value's group's mean, shape (T,)."""
    means: Float64s = (np.bincount(group_T, weights=values_T) / np.bincount(group_T))[group_T]
    return means


def _noise(table: _Table, scale_T: Float64s, *, num_candidates: int) -> tuple[Float64s, float]:
    """Standard deviation of each trial, by its length, shape (T,), and degrees of freedom of all lengths."""
    lengths, length_T = np.unique(table.steps_T, return_inverse=True)
    num_trials, num_rounds = len(table.loss_T), int(table.round_T.max()) + 1
    freedom = max(1.0, num_trials - num_rounds - (num_candidates - 1))
    noise_T = np.ones(num_trials)
    for _ in range(5):  # weights of the fit and residuals of it, in turn
        mean_C, _, _ = _posterior(table, scale_T, noise_T, num_candidates=num_candidates, spread=np.inf)
        fitted_T = mean_C[table.candidate_T] * scale_T
        residual_T = table.centred_T - (fitted_T - _means(fitted_T, table.round_T))
        pooled = float((residual_T**2).sum()) / freedom
        num_L = np.bincount(length_T)
        freedom_L = freedom * num_L / num_trials
        square_L = (np.bincount(length_T, weights=residual_T**2) + _SHARED_FREEDOM * pooled) / (freedom_L + _SHARED_FREEDOM)
        noise_T = np.maximum(np.sqrt(square_L), _TINY_NOISE)[length_T]
    assert len(lengths) == len(num_L)
    return noise_T, freedom


def _posterior(
    table: _Table, scale_T: Float64s, noise_T: Float64s, *, num_candidates: int, spread: float = _SPREAD
) -> tuple[Float64s, Float64s, float]:
    """Mean (C,) and covariance (C, C) of the differences for one exponent, and the log of its evidence up to a constant."""
    # What a round shares is unknown: it takes the direction in which all of a round's losses move alike.
    design_TC = np.zeros((len(table.loss_T), num_candidates))
    design_TC[np.arange(len(design_TC)), table.candidate_T] = scale_T
    for number in range(int(table.round_T.max()) + 1):
        rows_T = table.round_T == number
        design_TC[rows_T] -= design_TC[rows_T].mean(axis=0)
    weighted_TC = design_TC / noise_T[:, None]
    # A ridge of nothing leaves the direction in which all mixtures move alike undetermined, which no difference asks for.
    precision_CC = weighted_TC.T @ weighted_TC + np.eye(num_candidates) * (1 / spread**2 if np.isfinite(spread) else 1e-9)
    covariance_CC: Float64s = np.linalg.inv(precision_CC).astype(np.float64)
    moment_C = weighted_TC.T @ (table.centred_T / noise_T)
    mean_C = covariance_CC @ moment_C
    evidence = (float(moment_C @ mean_C) - float(np.linalg.slogdet(precision_CC)[1])) / 2
    return mean_C, covariance_CC, evidence


def _draws(posteriors: Sequence[tuple[Float64s, Float64s, float]], weight_E: Float64s, *, freedom: float) -> Float64s:
    """Draws of the differences over exponents, with the noise itself uncertain as so few trials leave it, shape (N, C)."""
    rng = np.random.default_rng(_SEED)
    parts = []
    for (mean_C, covariance_CC, _), count in zip(posteriors, rng.multinomial(_NUM_DRAWS, weight_E), strict=True):
        normal_NC = rng.multivariate_normal(np.zeros(len(mean_C)), covariance_CC, size=count, method="cholesky")
        stretch_N = np.sqrt(freedom / rng.chisquare(freedom, size=count))
        parts.append(mean_C + stretch_N[:, None] * normal_NC)
    draws_NC = np.concatenate(parts)
    centred_NC: Float64s = draws_NC - draws_NC.mean(axis=1, keepdims=True)
    return centred_NC
