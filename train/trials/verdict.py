"""What paired trials say: how much better each mixture is at the length of production, and how likely it is the best.

In round r every mixture c that is still in the race trains a proxy from the same seed for L_r steps. Its loss is taken to be

    y_cr = m_r + f_c (L_r / H)^-g + noise,

m_r being what all proxies of a round share, f_c the difference at the horizon H, and g how fast differences shrink as proxies read more:
short trials exaggerate. g is not told by trials of one length, so it has a prior. Nor is it known beforehand how far mixtures differ (the
spread of f) or how large the noise is. For given values of these three the model is linear with a normal posterior; they are on a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import helmert

from fastmix_data.arrays import Float64s

# Of twelve differences between mixtures of the benchmark corpus, the exponent from 0.6 M to 3 M tokens was 0.2 to 1.
_EXPONENT, _EXPONENT_SPREAD = 0.5, 0.3
_EXPONENTS = np.linspace(0, 1.5, 16)
# Both unknown, and any size of them as likely as another: differences that may as well be noise are drawn towards 0. In nats.
_SPREADS, _NOISES = np.geomspace(1e-3, 1, 11), np.geomspace(1e-4, 1, 24)
_SURE = 0.95  # that another mixture is better than the first, to leave that for it
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
        noise: standard deviation of a trial's loss beside what its round shares, in nats.
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
        """The likeliest best of the mixtures that are better than the first with 95% certainty; the first where none is."""
        better_C = (self.draws_NC < self.draws_NC[:, :1]).mean(axis=0)
        likely_C = np.where(better_C >= _SURE, self.probability_C, -1.0)
        return self.names[int(likely_C.argmax())] if likely_C.max() >= 0 else self.names[0]

    def difference(self, first: str, second: str) -> tuple[float, float, float]:
        """Loss of the first mixture less that of the second: mean, and the ends of the 90% interval."""
        place = {name: number for number, name in enumerate(self.names)}
        apart_N = self.draws_NC[:, place[first]] - self.draws_NC[:, place[second]]
        low, high = np.percentile(apart_N, [5, 95])
        return float(apart_N.mean()), float(low), float(high)


def judge(trials: Sequence[Trial], *, names: Sequence[str], horizon_steps: float) -> Verdict:
    """The posterior after two rounds or more.

    Args:
        names: mixtures, each of which has a trial.
        horizon_steps: length of production in steps of the proxy.
    """
    fits = _fit(trials, names=names, horizon_steps=horizon_steps)
    weight_ESN, variance_ESND = _grid(fits)
    rng = np.random.default_rng(_SEED)
    drawn = rng.choice(weight_ESN.size, size=_NUM_DRAWS, p=weight_ESN.reshape(-1))
    e_M, s_M, n_M = np.unravel_index(drawn, weight_ESN.shape)
    # What is measured along a direction, drawn towards 0 by as much as it may be noise.
    variance_MD, spread_M1, noise_M1 = variance_ESND[e_M, s_M, n_M], _SPREADS[s_M, None], _NOISES[n_M, None]
    mean_MD = spread_M1**2 * fits.size_ED[e_M] * fits.measured_ED[e_M] / variance_MD
    along_MD = mean_MD + spread_M1 * noise_M1 / np.sqrt(variance_MD) * rng.normal(size=mean_MD.shape)
    return Verdict(
        names=tuple(names),
        draws_NC=np.einsum("md,mdc->mc", along_MD, fits.direction_EDC[e_M]),
        noise=float(weight_ESN.sum(axis=(0, 1)) @ _NOISES),
        exponent=float(weight_ESN.sum(axis=(1, 2)) @ _EXPONENTS),
    )


@dataclass(frozen=True, eq=False)
class _Fits:
    """The trials seen along the D = C - 1 principal directions of differences between mixtures, for each of E exponents.

    A difference x along direction d is measured as size_d * x + noise, independently of the others.

    Attributes:
        direction_EDC: orthonormal differences.
        size_ED, measured_ED: as above.
        rest_E: sum of squares that no difference explains: noise alone.
        freedom: of that sum.
    """

    direction_EDC: Float64s
    size_ED: Float64s
    measured_ED: Float64s
    rest_E: Float64s
    freedom: int


def _fit(trials: Sequence[Trial], *, names: Sequence[str], horizon_steps: float) -> _Fits:
    _, round_T = np.unique([trial.round for trial in trials], return_inverse=True)
    in_round_RT = np.eye(round_T.max() + 1)[:, round_T]
    # What a round shares is unknown: it takes the direction in which all of a round's losses move alike.
    centring_TT = np.eye(len(trials)) - in_round_RT.T @ (in_round_RT / in_round_RT.sum(axis=1, keepdims=True))
    loss_T = centring_TT @ np.array([trial.loss for trial in trials])
    # Likewise the direction in which all mixtures move alike, which no difference asks for.
    contrast_DC = helmert(len(names))
    contrast_TD = contrast_DC[:, [names.index(trial.candidate) for trial in trials]].T
    scale_ET = (np.array([trial.num_steps for trial in trials]) / horizon_steps) ** -_EXPONENTS[:, None]
    measure_ETD, size_ED, turn_EDD = np.linalg.svd(centring_TT @ (scale_ET[:, :, None] * contrast_TD), full_matrices=False)
    measured_ED = np.einsum("etd,t->ed", measure_ETD, loss_T)
    rest_ET = loss_T - np.einsum("etd,ed->et", measure_ETD, measured_ED)
    freedom = len(trials) - len(in_round_RT) - len(contrast_DC)
    return _Fits(turn_EDD @ contrast_DC, size_ED, measured_ED, (rest_ET**2).sum(axis=1), freedom)


def _grid(fits: _Fits) -> tuple[Float64s, Float64s]:
    """How likely each exponent, spread and noise is, shape (E, S, N), and the variance of what is then measured, (E, S, N, D)."""
    spread_S11, noise_N, noise_N1 = _SPREADS[:, None, None], _NOISES, _NOISES[:, None]
    variance_ESND = (fits.size_ED**2)[:, None, None] * spread_S11**2 + noise_N1**2
    log_ESN = -(np.log(variance_ESND) + (fits.measured_ED**2)[:, None, None] / variance_ESND).sum(axis=3) / 2
    log_ESN -= fits.freedom * np.log(noise_N) + fits.rest_E[:, None, None] / noise_N**2 / 2
    log_ESN -= (((_EXPONENTS - _EXPONENT) / _EXPONENT_SPREAD) ** 2 / 2)[:, None, None]
    weight_ESN = np.exp(log_ESN - log_ESN.max())
    return weight_ESN / weight_ESN.sum(), variance_ESND
