"""The log-linear law of mixtures, exp(c) + exp(A h) (Ye et al., "Data Mixing Laws", arXiv 2403.16952), fitted as Olmix does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmix_data.arrays import Float64s

_HUBER_DELTA = 0.02
_FLOORS, _STARTS_PER_FLOOR = np.linspace(-2, 1.5, 10), 30  # Olmix's 300 starts
_LARGEST_SLOPE_AT_START = 0.1
_WORST_SOURCE = 1.5  # times the largest loss of the swarm: the most that one source alone may come to
_ALL_STEPS, _NUM_FINALISTS, _FINAL_STEPS = 15, 30, 100
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-8, 1e8
_FLATTEST = 1e-3  # a source of which the swarm has next to nothing is damped as if it had this part of the mean curvature
_NUMBERS_AT_ONCE = 4_000_000
_MOST_NATS = 700.0


@dataclass(frozen=True, eq=False)
class LogLinearLaw:
    """exp(floor) + exp(slope . h), the loss of one target.

    Attributes:
        slope_K: shape (K,).
    """

    floor: float
    slope_K: Float64s

    def predict(self, weights_NK: Float64s) -> Float64s:
        """Losses of mixtures, shape (N,)."""
        predicted_N: Float64s = np.exp(self.floor) + np.exp(weights_NK @ self.slope_K)
        return predicted_N

    def gradient(self, weights_K: Float64s) -> Float64s:
        """exp(slope . h) * slope, shape (K,)."""
        slope_K: Float64s = np.exp(weights_K @ self.slope_K) * self.slope_K
        return slope_K


def fit_log_linear(weights_NK: Float64s, losses_N: Float64s, *, seed: int) -> LogLinearLaw:
    """The law with the smallest sum of Huber losses (delta 0.02) over a swarm: the best of 300 starts, all moved at once.

    A small swarm leaves directions open, along which exp(A h) has no limit off the sample. Two things close them: starts near 0, as
    Olmix has them, and damping, so that no slope goes where the data does not ask it to; and that no source alone comes to more than
    1.5 times the largest loss that was seen.

    Args:
        weights_NK: mixtures of the swarm, shape (N, K).
        losses_N: one target's loss of the proxy trained on each, shape (N,), positive.
    """
    rng = np.random.default_rng(seed)
    floor_S = np.repeat(_FLOORS, _STARTS_PER_FLOOR)
    slope_SK = rng.uniform(0, _LARGEST_SLOPE_AT_START, (len(floor_S), weights_NK.shape[1]))
    most = float(np.log(_WORST_SOURCE * losses_N.max()))
    start_SP = np.minimum(np.column_stack([floor_S, slope_SK]), most)
    # The floor and the slopes together have many local minima. Most starts can be told to lose after a few steps.
    chunk = max(1, _NUMBERS_AT_ONCE // weights_NK.size)
    reached = [
        _descend(start_SP[first : first + chunk], weights_NK, losses_N, most=most, num_steps=_ALL_STEPS)
        for first in range(0, len(start_SP), chunk)
    ]
    reached_SP, value_S = np.concatenate([found for found, _ in reached]), np.concatenate([value for _, value in reached])
    finalists = np.argsort(value_S, kind="stable")[:_NUM_FINALISTS]
    final_SP, value_S = _descend(reached_SP[finalists], weights_NK, losses_N, most=most, num_steps=_FINAL_STEPS)
    best = final_SP[value_S.argmin()]
    return LogLinearLaw(float(best[0]), best[1:])


def _descend(
    start_SP: Float64s, weights_NK: Float64s, losses_N: Float64s, *, most: float, num_steps: int
) -> tuple[Float64s, Float64s]:
    """Damped Gauss-Newton (Levenberg and Marquardt) from many starts at once, reweighted for Huber's loss.

    Returns parameters (c, A) no larger than `most`, shape (S, 1 + K), and their sums of Huber losses, shape (S,).
    """
    at_SP, damping_S, diagonal = start_SP.copy(), np.full(len(start_SP), _FIRST_DAMPING), np.arange(start_SP.shape[1])
    value_S, parts_SN, residual_SN = _huber(at_SP, weights_NK, losses_N)
    for _ in range(num_steps):
        jacobian_SNP = np.concatenate(
            [
                np.broadcast_to(np.exp(at_SP[:, None, :1]), (*residual_SN.shape, 1)),
                parts_SN[:, :, None] * weights_NK,
            ],
            axis=2,
        )
        # Beyond delta Huber's loss is |r|: least squares with the weight delta / |r|.
        weighted_SNP = jacobian_SNP * np.minimum(1, _HUBER_DELTA / np.maximum(np.abs(residual_SN), 1e-12))[:, :, None]
        gradient_SP = np.einsum("snp,sn->sp", weighted_SNP, residual_SN)
        # A parameter that rests on its bound and would go on beyond it takes no part in the step.
        free_SP = (at_SP < most) | (gradient_SP > 0)
        curvature_SPP = np.matmul(weighted_SNP.transpose(0, 2, 1), jacobian_SNP) * free_SP[:, :, None] * free_SP[:, None, :]
        own_SP = curvature_SPP[:, diagonal, diagonal]
        damped_SP = damping_S[:, None] * np.maximum(own_SP, _FLATTEST * own_SP.mean(axis=1, keepdims=True)) + 1e-12
        curvature_SPP[:, diagonal, diagonal] += damped_SP + ~free_SP
        step_SP = np.linalg.solve(curvature_SPP, (gradient_SP * free_SP)[:, :, None])[:, :, 0]
        tried_SP = np.minimum(at_SP - step_SP, most)
        tried = _huber(tried_SP, weights_NK, losses_N)
        better_S = tried[0] < value_S
        at_SP[better_S] = tried_SP[better_S]
        for kept, new in zip((value_S, parts_SN, residual_SN), tried, strict=True):
            kept[better_S] = new[better_S]
        damping_S = np.clip(np.where(better_S, damping_S / 3, damping_S * 4), _LEAST_DAMPING, _MOST_DAMPING)
    return at_SP, value_S


def _huber(at_SP: Float64s, weights_NK: Float64s, losses_N: Float64s) -> tuple[Float64s, Float64s, Float64s]:
    """Sums of Huber losses, shape (S,); exp(A h) and residuals, shape (S, N)."""
    parts_SN = np.exp(np.minimum(at_SP[:, 1:] @ weights_NK.T, _MOST_NATS))
    residual_SN = np.exp(at_SP[:, :1]) + parts_SN - losses_N
    size_SN = np.minimum(np.abs(residual_SN), 1e100)
    each_SN = np.where(size_SN <= _HUBER_DELTA, size_SN**2 / 2, _HUBER_DELTA * (size_SN - _HUBER_DELTA / 2))
    return each_SN.sum(axis=1), parts_SN, residual_SN
