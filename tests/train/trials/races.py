"""Races between mixtures whose differences are planted: the losses of their trials are drawn, not trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from train.search.trials import Trials, next_round
from train.trials.verdict import Trial, Verdict

NAMES = ("start", "scores", "concentrated", "proportional")
BUDGET, HORIZON = 1000, 2000  # steps


def race(
    differences: Mapping[str, float], rng: np.random.Generator, *, noise: float, exponent: float = 0.5
) -> tuple[Trials, Verdict]:
    """Trials to the end, and what they say.

    Args:
        differences: between losses at the horizon, in nats; short trials exaggerate them by the exponent.
    """
    trials, shared = Trials({name: [1.0] for name in differences}), rng.normal(5, 1, 100)
    while (coming := next_round(trials, budget_steps=BUDGET, horizon_steps=HORIZON)) is not None:
        scale = (coming.num_steps / HORIZON) ** -exponent
        losses = [shared[coming.number] + scale * differences[name] + noise * rng.normal() for name in coming.names]
        made = [
            Trial(name, coming.number, coming.num_steps, float(loss)) for name, loss in zip(coming.names, losses, strict=True)
        ]
        trials = replace(trials, done=[*trials.done, *made])
    verdict = trials.verdict(horizon_steps=HORIZON)
    assert verdict is not None
    return trials, verdict
