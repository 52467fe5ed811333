"""The losses of one round's trials: all proxies at once where a GPU has room for them, one after the other where it has not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from fastmix_data.arrays import Float64s
from train.checkpoints.checkpoints import CheckpointPlan
from train.proxy.engine import own_device
from train.proxy.training import ProxyPlan, not_finite, train_on_mixture
from train.side_by_side.training import train_side_by_side
from train.side_by_side.trial import try_side_by_side
from train.target.target import Target


@dataclass(frozen=True)
class Measured:
    """What the trials of a round share.

    Attributes:
        proxy: trained for the round's number of steps.
        seed: of its weights and the order of its data.
        target: with fixed weights.
        num_sequences: of each target, on which a trial is measured.
        skip: sequences of each target that trials of earlier rounds were measured on.
    """

    proxy: ProxyPlan
    seed: int
    target: Target
    num_sequences: int
    skip: int


@dataclass
class TrialRunner:
    """Trains and measures trials.

    Attributes:
        on_step: called after each step of `num_trials` proxies at once with their number; every rank calls it.
        kept: where a proxy that is trained alone is saved.
        side_by_side: whether to train proxies at once; None does it on a GPU that one rank has to itself, if the model allows it.
    """

    on_step: Callable[[int, int], None]
    kept: CheckpointPlan
    side_by_side: bool | None = None
    _most_at_once: int | None = field(default=None, init=False)

    def losses(self, mixtures: Sequence[Float64s], shared: Measured) -> Iterator[list[float]]:
        """Loss of each mixture on the search's half of the target, as many at a time as are trained at once."""
        at_once = max(1, self._fitting(shared.proxy))
        for start in range(0, len(mixtures), at_once):
            some = mixtures[start : start + at_once]
            yield self._stacked(some, shared) if self._fitting(shared.proxy) else [self._alone(some[0], shared)]

    def _fitting(self, proxy: ProxyPlan) -> int:
        """Proxies that can be trained at once; 0 where they are trained by the engine, one after the other."""
        if self._most_at_once is None:
            wanted = torch.cuda.is_available() and dist.get_world_size() == 1 if self.side_by_side is None else self.side_by_side
            self._most_at_once = try_side_by_side(proxy, device=own_device()).most_at_once if wanted else 0
        return self._most_at_once

    def _alone(self, weights_K: Float64s, shared: Measured) -> float:
        proxy, kept = (
            shared.proxy,
            self.kept.of(seed=shared.seed, num_steps=shared.proxy.training.num_steps, weights=weights_K.tolist()),
        )
        engine = train_on_mixture(
            proxy, weights_K, seed=shared.seed, on_step=lambda step, _: self.on_step(step, 1), kept=kept
        ).engine
        losses_G = shared.target.evaluate_each(engine, half="search", num_sequences=shared.num_sequences, skip=shared.skip)
        engine.close()
        return float(shared.target.weights_G @ losses_G)

    def _stacked(self, mixtures: Sequence[Float64s], shared: Measured) -> list[float]:
        number = len(mixtures)
        run = train_side_by_side(
            shared.proxy,
            np.array(mixtures),
            seeds=[shared.seed] * number,
            device=own_device(),
            on_step=lambda step: self.on_step(step, number),
        )
        if not run.is_finite_N.all():
            raise not_finite(shared.proxy.training)
        losses_NG = shared.target.evaluate_stacked(
            run.proxies, half="search", num_sequences=shared.num_sequences, skip=shared.skip
        )
        losses: list[float] = (losses_NG @ shared.target.weights_G).tolist()
        return losses
