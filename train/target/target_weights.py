"""Weights of several targets that move during a search: towards the worst one, or towards those that break a limit.

Both rules look at the excess of each target: its loss less that of a reference run, on the same sequences and after as many steps. The
two runs share seed and budget, so most of the noise of a loss cancels in the difference: of 16 fresh target sequences a loss is known to
about 0.1 nats, of 32 paired ones the excess to about 0.02, and it is excesses of that size that decide.

Both rules answer to the excess as it is about to be rather than to its sum over the past. A mixture takes many updates to follow the
weights of the targets, and the losses more to follow the mixture; exponentiated-gradient ascent, which adds up excesses, overshoots for
as long and swings. Measured on a planted corpus with two targets that compete, as the largest excess of a fresh proxy on the answer
after 120 and 480 steps (about -0.2 is the best there is): ascent with rates of 1, 2 and 4 a measurement 0.04, 0.22, 0.36 and 0.22, -0.02,
-0.11 nats with one seed; with two seeds, the smooth maximum of the excess as it stands -0.10, -0.14 and -0.18, -0.17, of the one foreseen
-0.21, -0.13 and -0.15, -0.19. Limits were kept in 4 of these 4 searches with foresight, and in 2 without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection
from train.mixture.simplex import softmax

_MAX_SEQUENCES, _MIN_UPDATES_BETWEEN, _LARGEST_COST, _FORWARD_COST = 32, 2, 0.1, 1 / 3
_SHARPNESS, _SPREAD = 8.0, 0.05
_PENALTY, _LIMIT_RATE, _LIMIT_MARGIN = 16.0, 0.25, 0.02
_FORESIGHT = 4.0
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


def num_measured_sequences(search: SearchSection) -> int:
    """Sequences of each target that an excess is measured on."""
    return min(search.eval_sequences, _MAX_SEQUENCES)


def measured_steps(search: SearchSection, training: TrainingSection, *, num_targets: int) -> list[int]:
    """Steps after which the excess is measured: every second update, or fewer, so that it costs a tenth of training."""
    trained = search.update_interval * training.global_batch
    # Measuring is a forward pass; training, with its backward pass, costs three of them.
    measuring = _FORWARD_COST * num_targets * num_measured_sequences(search)
    every = max(_MIN_UPDATES_BETWEEN, math.ceil(measuring / (_LARGEST_COST * trained)))
    return list(range(search.update_interval, training.num_steps + 1, every * search.update_interval))


def foreseen_excess(excess_G: Float64s, last_G: Float64s, *, foresight: float = _FORESIGHT) -> Float64s:
    """Excess `foresight` measurements ahead if it goes on as from the last to this one, shape (G,).

    >>> foreseen_excess(np.array([0.1]), np.array([0.05]), foresight=2.0)
    array([0.2])
    """
    coming_G: Float64s = excess_G + foresight * (excess_G - last_G)
    return coming_G


def worst_case_weights(excess_G: Float64s, *, sharpness: float = _SHARPNESS, spread: float = _SPREAD) -> Float64s:
    """Gradient of a smooth maximum of the excesses, shape (G,).

    w = (1 - spread) * softmax(sharpness * excess) + spread * uniform. The first term is the gradient of
    log(sum_g exp(sharpness * excess_g)) / sharpness (Li et al., arXiv 2007.01162, eq. 2), which exceeds the largest excess by
    log(G) / sharpness at most; it is where exponentiated-gradient ascent with that entropy bonus comes to rest (Group DRO, Sagawa et al.,
    arXiv 1911.08731). The second keeps every target in the gradient (DoReMi, arXiv 2305.10429, algorithm 1).

    Args:
        excess_G: loss less reference loss, in nats; a constant added to all of them changes nothing.
        sharpness: per nat.

    >>> worst_case_weights(np.array([0., np.log(3)]), sharpness=1., spread=0.)
    array([0.25, 0.75])
    """
    raised_G = softmax(sharpness * (excess_G - excess_G.max()))
    weights_G: Float64s = (1 - spread) * raised_G + spread / len(excess_G)
    return weights_G


def limit_multipliers(
    remembered_G: Float64s, excess_G: Float64s, *, tolerance: float, penalty: float = _PENALTY, rate: float = _LIMIT_RATE
) -> tuple[Float64s, Float64s]:
    """Multipliers of the limits excess <= tolerance, by the method of multipliers.

    With v = excess - tolerance: m' = max(0, m + rate * v) is projected dual ascent (Arrow, Hurwicz and Uzawa, 1958), which is 0 at rest
    for a limit that is kept; the augmented term adds max(0, m' + penalty * v) at once (Rockafellar, 1973, eq. 1.4).

    Args:
        remembered_G: m of each target, non-negative.
        penalty: per nat.
        rate: per nat and measurement.

    Returns:
        m' and max(0, m' + penalty * v), each of shape (G,).

    >>> limit_multipliers(np.array([0., 1.]), np.array([.2, -.3]), tolerance=.1, penalty=5., rate=2.)
    (array([0.2, 0.2]), array([0.7, 0. ]))
    """
    violation_G = excess_G - tolerance
    moved_G = np.maximum(0.0, remembered_G + rate * violation_G)
    return moved_G, np.maximum(0.0, moved_G + penalty * violation_G)


class TargetBalance:
    """The current weights of the targets."""

    def __init__(self, weights_G: Float64s, *, rule: Rule = "fixed", tolerance: float = 0.0) -> None:
        """Start from the recipe's weights.

        Args:
            weights_G: shape (G,), positive, sum 1.
            rule: `fixed` keeps them; `worst_case` starts from uniform and follows the excess alone; `limits` adds a multiplier to each
                and normalises.
            tolerance: excess that a limit allows, in nats; the rule aims 0.02 below, the noise of a measured excess.
        """
        self._rule, self._tolerance, self._given_G = rule, tolerance, weights_G
        self._weights_G = np.full_like(weights_G, 1 / len(weights_G)) if rule == "worst_case" else weights_G
        self._multipliers_G = np.zeros_like(weights_G)
        self._last_excess_G: Float64s | None = None

    @classmethod
    def of_section(cls, target: TargetSection) -> TargetBalance:
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
        return self._weights_G

    def update(self, excess_G: Float64s) -> None:
        """Move the weights for the excess of each target, shape (G,), in nats per loss token.

        Both rules are given the excess that is to come, drawn on from the last two measurements, since their answer comes late.
        """
        coming_G = excess_G if self._last_excess_G is None else foreseen_excess(excess_G, self._last_excess_G)
        self._last_excess_G = excess_G
        if self._rule == "worst_case":
            self._weights_G = worst_case_weights(coming_G)
        elif self._rule == "limits":
            self._multipliers_G, added_G = limit_multipliers(
                self._multipliers_G, coming_G, tolerance=self._tolerance - _LIMIT_MARGIN
            )
            # The Lagrangian's gradient, normalised: scores are used up to their scale, so only the direction counts.
            self._weights_G = (self._given_G + added_G) / (1 + added_G.sum())

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        last = None if self._last_excess_G is None else self._last_excess_G.tolist()
        return {"weights": self._weights_G.tolist(), "multipliers": self._multipliers_G.tolist(), "last_excess": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._weights_G, self._multipliers_G = np.array(state["weights"]), np.array(state["multipliers"])
        self._last_excess_G = None if state["last_excess"] is None else np.array(state["last_excess"])


class TargetLossEstimates:
    """Loss of each target from the fresh batches of the updates, smoothed; a target absent from a batch keeps its estimate."""

    def __init__(self, num_targets: int) -> None:
        """Start without evidence."""
        self._sums_G2 = np.zeros((num_targets, 2))

    def add(self, sums_G2: Float64s) -> None:
        """Add summed losses and the loss tokens they are of, shape (G, 2), reduced over ranks."""
        # As for sources: what a batch did not hold does not fade.
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
