"""Weights of several targets that move during a search: towards the worst one, or towards those that break a limit.

Both rules look at the excess of each target: its loss less that of a reference run, on the same sequences and after as many steps. The
two runs share seed and budget, so most of the noise of a loss cancels in the difference. The excess is measured at about `NUM_ROUNDS`
steps of a search, whatever its length, so that a rate means the same in a short search and in a long one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastmix_data.recipe import SearchSection, TargetSection
from fastmix_data.sampler import Float64s

NUM_ROUNDS = 24
_WORST_CASE_RATE, _WORST_CASE_SMOOTHING = 4.0, 0.05
_LIMIT_RATE = 16.0
_LOSS_SMOOTHING = 0.8
Rule = Literal["fixed", "worst_case", "limits"]


@dataclass(frozen=True)
class ReferenceLosses:
    """Loss of each target in a reference run, in nats per loss token.

    Attributes:
        steps_S: optimiser steps done when the losses were taken, shape (S,), ascending.
        losses_SG: on the search half, shape (S, G).
        num_sequences: sequences of each target that `losses_SG` is over.
        end_G: at the end, over `search.eval_sequences` sequences, shape (G,).
    """

    steps_S: list[int]
    losses_SG: list[list[float]]
    num_sequences: int
    end_G: list[float]

    def at(self, step: int) -> Float64s:
        """Losses after `step` steps, shape (G,): linear between the steps measured, constant outside them."""
        losses_SG = np.array(self.losses_SG)
        return np.array([np.interp(step, self.steps_S, losses_S) for losses_S in losses_SG.T])


def measured_steps(search: SearchSection, *, num_rounds: int = NUM_ROUNDS) -> list[int]:
    """Steps at which the excess is measured: at most `num_rounds` of the search's updates, evenly spaced, none before the warm-up ends."""
    interval = search.update_interval
    first = search.weights_warmup_steps // interval + 1
    updates = np.arange(first, search.num_steps // interval + 1)
    chosen = np.unique(np.linspace(0, len(updates) - 1, min(num_rounds, len(updates))).round().astype(np.int64))
    steps: list[int] = (updates[chosen] * interval).tolist()
    return steps


def worst_case_step(
    weights_G: Float64s, excess_G: Float64s, *, rate: float = _WORST_CASE_RATE, smoothing: float = _WORST_CASE_SMOOTHING
) -> Float64s:
    """One step of exponentiated-gradient ascent on the largest excess, shape (G,).

    w <- (1 - smoothing) * normalise(w * exp(rate * excess)) + smoothing * uniform, as Group DRO (Sagawa et al., arXiv 1911.08731,
    algorithm 1) with excess losses; the pull to uniform (DoReMi, arXiv 2305.10429, algorithm 1) lets a target come back.

    Args:
        excess_G: loss less reference loss, in nats; a constant added to all of them changes nothing.
        rate: per nat and round.

    >>> worst_case_step(np.array([.5, .5]), np.array([0., np.log(3)]), rate=1., smoothing=0.)
    array([0.25, 0.75])
    """
    raised_G = weights_G * np.exp(rate * (excess_G - excess_G.max()))
    moved_G: Float64s = (1 - smoothing) * raised_G / raised_G.sum() + smoothing / len(weights_G)
    return moved_G


def limit_step(multipliers_G: Float64s, excess_G: Float64s, *, tolerance: float, rate: float = _LIMIT_RATE) -> Float64s:
    """One step of projected dual ascent on the limits excess <= tolerance, shape (G,).

    m <- max(0, m + rate * (excess - tolerance)): a violated limit's multiplier grows, a kept one's shrinks to 0
    (Arrow, Hurwicz and Uzawa, 1958).

    Args:
        multipliers_G: one per target, non-negative.
        rate: per nat and round.

    >>> limit_step(np.array([0., 1.]), np.array([.2, -.3]), tolerance=.1, rate=2.)
    array([0.2, 0.2])
    """
    return np.maximum(0.0, multipliers_G + rate * (excess_G - tolerance))


class TargetBalance:
    """The current weights of the targets."""

    def __init__(self, weights_G: Float64s, *, rule: Rule = "fixed", tolerance: float = 0.0) -> None:
        """Start from the recipe's weights.

        Args:
            weights_G: shape (G,), positive, sum 1.
            rule: `fixed` keeps them; `worst_case` ascends on the excess; `limits` adds a multiplier to each and normalises.
            tolerance: excess that a limit allows, in nats.
        """
        self._given_G, self._rule, self._tolerance = weights_G, rule, tolerance
        self._ascended_G = weights_G
        self._multipliers_G = np.zeros_like(weights_G)

    @classmethod
    def of_recipe(cls, target: TargetSection) -> TargetBalance:
        """The balance a recipe asks for. `worst_case` decides where both are given: it holds down the excess that limits bound."""
        rule: Rule = "worst_case" if target.worst_case else "limits" if target.not_worse_than else "fixed"
        return cls(np.array(list(target.weights().values())), rule=rule, tolerance=target.limit_tolerance)

    @property
    def moves(self) -> bool:
        """Whether the weights may change."""
        return self._rule != "fixed"

    @property
    def weights_G(self) -> Float64s:
        """Weights now, shape (G,), sum 1."""
        if self._rule == "limits":
            raised_G = self._given_G + self._multipliers_G
            normalised_G: Float64s = raised_G / raised_G.sum()
            return normalised_G
        return self._ascended_G

    def update(self, excess_G: Float64s) -> None:
        """Move the weights for the excess of each target, shape (G,), in nats per loss token."""
        if self._rule == "worst_case":
            self._ascended_G = worst_case_step(self._ascended_G, excess_G)
        elif self._rule == "limits":
            self._multipliers_G = limit_step(self._multipliers_G, excess_G, tolerance=self._tolerance)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"ascended": self._ascended_G.tolist(), "multipliers": self._multipliers_G.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._ascended_G, self._multipliers_G = np.array(state["ascended"]), np.array(state["multipliers"])


class TargetLossEstimates:
    """Loss of each target from the fresh batches of the updates, smoothed; a target absent from a batch keeps its estimate."""

    def __init__(self, num_targets: int) -> None:
        """Start without evidence."""
        self._sums_G2 = np.zeros((num_targets, 2))

    def add(self, sums_G2: Float64s) -> None:
        """Add summed losses and the loss tokens they are of, shape (G, 2), reduced over ranks."""
        kept_G = np.where(sums_G2[:, 1] > 0, _LOSS_SMOOTHING, 1.0)
        self._sums_G2 = kept_G[:, None] * self._sums_G2 + sums_G2

    def losses(self) -> list[float | None]:
        """Nats per loss token of each target; None where no sequence was seen yet."""
        return [float(loss / count) if count > 0 else None for loss, count in self._sums_G2]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"sums": self._sums_G2.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._sums_G2 = np.array(state["sums"])
