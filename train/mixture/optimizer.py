"""The outer loop: logits of the mixture, moved by the scores of its sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fastmix_data.arrays import Float64s
from train.mixture.simplex import softmax

# 0.99, not 0.999: a search makes tens of updates, and scores of its beginning must not set the size of its last moves.
_ADAM_BETAS, _ADAM_EPSILON = (0.9, 0.99), 1e-12
_TINY = 1e-30
_SMALLEST_WEIGHT = 1e-12  # buys no token; in smaller ones gradients weighted by them would be denormal numbers, slow and inexact


def logit_gradient(weights_K: Float64s, scores_K: Float64s, *, loss_density_K: Float64s) -> Float64s:
    """Derivative of the target loss in the logits, up to the positive factor lr, shape (K,).

    The loss trained on is a mean over loss tokens, of which source k has the share s_k = p_k r_k / sum_i p_i r_i, r_k being its loss
    tokens per sequence. Its derivative gives dL/dz_j = -s_j (a_j - sum_i s_i a_i); without masks s = p.
    """
    shares_K = weights_K * loss_density_K
    shares_K = shares_K / shares_K.sum()
    gradient_K: Float64s = -shares_K * (scores_K - shares_K @ scores_K)
    return gradient_K


def _root_mean_square(values_K: Float64s) -> float:
    return float(np.sqrt(np.mean(values_K**2)))


class MixtureOptimizer:
    """Moves the logits.

    `adam` is the paper's rule on the logits. `exponentiated_gradient` multiplies each weight by exp(rate * score), scores centred and
    divided by their spread.
    """

    def __init__(
        self,
        initial_K: Float64s,
        *,
        rule: Literal["adam", "exponentiated_gradient"],
        learning_rate: float,
        project: Callable[[Float64s], Float64s] | None = None,
    ) -> None:
        """Start from weights of shape (K,) on the simplex.

        Args:
            project: what brings weights within their constraints, at the start and after every move, None for no constraints. The
                memory of `adam` is left as it is.
        """
        self._rule, self._learning_rate, self._project = rule, learning_rate, project
        self._logits_K = self._projected_logits(initial_K)
        self._mean_K = np.zeros_like(self._logits_K)
        self._square_K = np.zeros_like(self._logits_K)
        self.num_updates = 0

    @property
    def weights_K(self) -> Float64s:
        """The mixture now, shape (K,)."""
        return softmax(self._logits_K)

    def step(self, gradient_K: Float64s) -> None:
        """Descend along a gradient in the logits, shape (K,)."""
        self.num_updates += 1
        if self._rule == "adam":
            move_K = self._adam_direction(gradient_K)
        else:
            # d/dz carries a factor p: without it a move is by score alone, and a small weight comes back as fast as it went.
            per_weight_K = gradient_K / np.maximum(self.weights_K, _TINY)
            move_K = per_weight_K / (_root_mean_square(per_weight_K) + _TINY)
        self._logits_K = self._projected_logits(softmax(self._logits_K - self._learning_rate * move_K))

    def _projected_logits(self, weights_K: Float64s) -> Float64s:
        projected_K = self._project(weights_K) if self._project is not None else weights_K
        logits_K = np.log(np.maximum(projected_K, _SMALLEST_WEIGHT))
        shifted_K: Float64s = logits_K - logits_K.max()
        return shifted_K

    def _adam_direction(self, gradient_K: Float64s) -> Float64s:
        """Bias-corrected Adam (Kingma and Ba, 2015); epsilon is relative, since scores have no scale of their own."""
        first, second = _ADAM_BETAS
        self._mean_K = first * self._mean_K + (1 - first) * gradient_K
        self._square_K = second * self._square_K + (1 - second) * gradient_K**2
        mean_K = self._mean_K / (1 - first**self.num_updates)
        root_K = np.sqrt(self._square_K / (1 - second**self.num_updates))
        direction_K: Float64s = mean_K / (root_K + _ADAM_EPSILON * root_K.max() + _TINY)
        return direction_K

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "logits": self._logits_K.tolist(),
            "mean": self._mean_K.tolist(),
            "square": self._square_K.tolist(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._logits_K, self._mean_K = np.array(state["logits"]), np.array(state["mean"])
        self._square_K, self.num_updates = np.array(state["square"]), int(state["num_updates"])
