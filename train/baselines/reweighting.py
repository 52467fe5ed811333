"""The proxy run that DoGE and DoReMi share: sources sampled alike, losses weighted by a mixture that moves at every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastmix_data.arrays import Float64s, Int64s
from train.checkpoints.checkpoints import CheckpointPlan, Checkpoints
from train.checkpoints.tensor_files import Runs
from train.mixture.simplex import uniform
from train.proxy.engine import ProxyEngine
from train.proxy.losses import IGNORED, loss_weights, on_device
from train.proxy.training import MicroBatch, MixtureTraining, ProxyPlan, not_finite


class SourceSums:
    """Per source: a sum over the sequences seen in the current step, over its loss tokens; what was not seen keeps its last mean."""

    def __init__(self, num_sources: int) -> None:
        """Start without anything seen: zeros."""
        self.mean_K: Float64s = np.zeros(num_sources)
        self._sum_K, self._num_tokens_K = np.zeros(num_sources), np.zeros(num_sources)

    def add(self, source_B: Int64s, value_B: Tensor, labels_BT: Tensor) -> None:
        """Add one value for each sequence, shape (B,), with the loss tokens it was summed over."""
        # Not `sum[source] += value`, which adds only one of several sequences of a source.
        np.add.at(self._sum_K, source_B, value_B.detach().double().cpu().numpy())
        np.add.at(self._num_tokens_K, source_B, (labels_BT != IGNORED).sum(dim=1).cpu().numpy())

    def end_step(self) -> Float64s:
        """Means per loss token, shape (K,)."""
        seen_K = self._num_tokens_K > 0
        self.mean_K = np.where(seen_K, self._sum_K / np.maximum(self._num_tokens_K, 1), self.mean_K)
        self._sum_K[:] = self._num_tokens_K[:] = 0
        return self.mean_K

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state, between two steps."""
        return {"mean": self.mean_K.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.mean_K = np.array(state["mean"])


class Rule(Protocol):
    """How a step's passes move the mixture."""

    def watch(self, batch: MicroBatch, factor_B: Tensor) -> AbstractContextManager[Callable[[Tensor], None]]:
        """Around a training pass, forward and backward, of the loss sum_i factor_i * (token losses of sequence i).

        The context is a function to be given the pass's token losses, shape (B, T).
        """
        ...

    def begin(self) -> None:
        """Before a step's passes."""
        ...

    def update(self, weights_K: Float64s, *, learning_rate: float) -> Float64s:
        """The next weights, after a step's passes."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state, between two steps."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        ...


def run_reweighting(
    plan: ProxyPlan, *, engine: ProxyEngine, rule: Rule, on_tokens: Callable[[int], None], kept: CheckpointPlan | None = None
) -> tuple[Float64s, float]:
    """Train on one rank under a mixture that starts uniform and moves after every step.

    Both papers move the mixture before the step's own gradient is taken; here it is one step behind, so that a step costs one pass.

    Args:
        on_tokens: told the tokens of each step.
        kept: where the proxy is saved while it is trained; whoever has used the mixture discards it.

    Returns:
        The average of the weights over the steps, shape (K,), and the seconds of training.

    Raises:
        FastmixError: the loss is not finite.
    """
    assert engine.world_size == 1
    run = MixtureTraining(plan, engine, seed=plan.training.seed)
    uniform_K = uniform(len(plan.catalog.sources))
    weights_K, total_K, loss = uniform_K, np.zeros_like(uniform_K), torch.zeros(())

    def train_on(batch: MicroBatch) -> None:
        nonlocal loss
        factor_B = on_device(factor_K[batch.source_B], engine.device)
        with rule.watch(batch, factor_B) as see:
            losses_BT = engine.token_losses(batch.inputs, batch.labels_BT)
            see(losses_BT.detach())
            losses_B = losses_BT.sum(dim=1)
            loss = (losses_B * factor_B.to(losses_B)).sum()
            engine.backward(loss)

    checkpoints = Checkpoints(kept, engine) if kept is not None else None
    saved = checkpoints.resume() if checkpoints is not None else None
    seconds_before = 0.0
    if saved is not None:
        run.load_state_dict(saved.state["training"])
        rule.load_state_dict(saved.state["rule"])
        weights_K, total_K = np.array(saved.state["weights"]), np.array(saved.state["total"])
        seconds_before = float(saved.state["seconds"])

    def seconds() -> float:
        return seconds_before + time.monotonic() - started

    def state() -> tuple[dict[str, Any], Runs]:
        mixture = {"weights": weights_K.tolist(), "total": total_K.tolist()}
        return {**mixture, "training": run.state_dict(), "rule": rule.state_dict(), "seconds": seconds()}, {}

    started = time.monotonic()
    while run.step < plan.training.num_steps:
        factor_K = loss_weights(
            weights_K,
            exploration=1.0,  # sources are drawn alike; the mixture is in the losses' weights alone
            mean_loss_tokens_K=run.reader.mean_loss_tokens_K,
            global_batch=plan.training.global_batch,
        )
        learning_rate = run.learning_rate
        rule.begin()
        run.train_step(uniform_K, train_on, steps_alike=plan.training.num_steps - run.step)
        weights_K = rule.update(weights_K, learning_rate=learning_rate)
        total_K = total_K + weights_K
        on_tokens(plan.training.tokens_per_step)
        if checkpoints is not None and checkpoints.looks_at(run.step) and run.step < plan.training.num_steps:
            checkpoints.after_step(run.step, state)
    if checkpoints is not None:
        checkpoints.finish()
    if not (np.isfinite(float(loss.detach())) and np.isfinite(total_K).all()):
        raise not_finite(plan.training)
    return total_K / total_K.sum(), seconds()
