"""Many small proxies trained at once on one device, each as `train_on_mixture` trains it alone.

A step of a small proxy is hundreds of operations that a GPU does sooner than they are asked for. Stacked, they are asked for once for all
proxies, and from a CUDA graph without Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmix_data.arrays import Bools, Float64s
from fastmix_data.loading.read_ahead import read_ahead
from fastmix_data.messages import first_line
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.sampler import ManySamplers
from train.proxy.deepspeed_config import computes_in_bf16
from train.proxy.losses import ModelInputs, to_tensors
from train.proxy.training import ProxyPlan, learning_rate_at, loss_factor
from train.side_by_side.stacked import StackedProxies

_BATCHES_AHEAD = 3
_STEPS_UNWATCHED = 8  # that the GPU may lie behind what it was asked for
_ADAM_EPSILON = 1e-8  # torch's default
_WARM_UP_STEPS = 2  # before capture, as torch wants it


class StackedBatch(NamedTuple):
    """A batch of each proxy: inputs and labels of shape (N, B, T)."""

    inputs: ModelInputs
    labels_NBT: Tensor


@dataclass(frozen=True)
class SideBySideRun:
    """Proxies trained on fixed mixtures.

    Attributes:
        proxies: the trained ones.
        is_finite_N: whether the loss of each was finite at the last step.
        seconds: time of training all of them, set-up left out.
        without_graph: why a GPU was asked for every operation; empty if it was not, and on CPU.
    """

    proxies: StackedProxies
    is_finite_N: Bools
    seconds: float
    without_graph: str


def train_side_by_side(
    plan: ProxyPlan,
    weights_NK: Float64s,
    *,
    seeds: Sequence[int],
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
) -> SideBySideRun:
    """Train N fresh proxies on fixed mixtures.

    Args:
        weights_NK: shares of tokens in the order of the catalog's sources, shape (N, K).
        seeds: of each, as `train_on_mixture` takes it.
        on_step: called after each step with the number of steps done, which a GPU may lie a few behind.
    """
    training, reader = plan.training, plan.training_data()
    proxies = fresh_proxies(plan, seeds=seeds, device=device)
    sampler = ManySamplers(
        reader.num_sequences_K, seeds_N=seeds, global_batch=training.global_batch, window=training.locality_window
    )

    def read_batch() -> StackedBatch:
        drawn = sampler.next(weights_NK)
        read = to_tensors(reader.read(drawn.source_B, drawn.sequence_B), device=torch.device("cpu"))
        return stack_batches(*read, num_proxies=len(seeds))

    batches = read_ahead((read_batch() for _ in range(training.num_steps)), depth=_BATCHES_AHEAD)
    first = next(batches)
    factor_N = loss_factor(weights_NK, mean_loss_tokens_K=reader.mean_loss_tokens_K, training=training)
    steps = SideBySideSteps(proxies, training=training, factor_N=factor_N, like=first)
    without_graph = steps.capture() if device.type == "cuda" else ""
    started = time.monotonic()
    for number, batch in enumerate(chain([first], batches)):
        steps.take(batch, learning_rate=learning_rate_at(number, training))
        if device.type == "cuda" and number % _STEPS_UNWATCHED == 0:
            torch.cuda.synchronize(device)
        if on_step is not None:
            on_step(number + 1)
    is_finite_N: Bools = np.isfinite(steps.losses_N.cpu().numpy())
    return SideBySideRun(proxies, is_finite_N, time.monotonic() - started, without_graph)


def fresh_proxies(plan: ProxyPlan, *, seeds: Sequence[int], device: torch.device) -> StackedProxies:
    """Proxies as `ProxyPlan.build_model` makes them with these seeds."""
    proxies = empty_stack(plan, num_proxies=len(seeds), device=device)
    for seed in set(seeds):  # most of a swarm have the same
        state = plan.build_model(seed=seed).state_dict()
        for number in np.flatnonzero(np.array(seeds) == seed).tolist():
            proxies.set_parameters(number, state)
    return proxies


def empty_stack(plan: ProxyPlan, *, num_proxies: int, device: torch.device) -> StackedProxies:
    """Room for proxies of a plan."""
    dtype = torch.bfloat16 if computes_in_bf16(plan.training) else torch.float32
    return StackedProxies(plan.build_model(seed=0), num_proxies=num_proxies, device=device, dtype=dtype)


def stack_batches(inputs: ModelInputs, labels: Tensor, *, num_proxies: int) -> StackedBatch:
    """Batches that lie one after the other, of shape (N * B, T), apart."""

    def apart(part: Tensor) -> Tensor:
        parts: Tensor = part.unflatten(0, (num_proxies, -1))
        return parts.contiguous()

    tokens, positions = inputs
    return StackedBatch(ModelInputs(apart(tokens), None if positions is None else apart(positions)), apart(labels))


class SideBySideSteps:
    """AdamW with clipping for stacked proxies, the arithmetic of `ProxyEngine`, as operations that a CUDA graph can hold.

    Attributes:
        losses_N: of the last step.
    """

    def __init__(self, proxies: StackedProxies, *, training: TrainingSection, factor_N: Float64s, like: StackedBatch) -> None:
        """Start with moments of zero.

        Args:
            factor_N: of the summed token losses in the loss of each proxy.
            like: a batch, for its shapes; it is what a graph is recorded on.
        """
        self._proxies, self._training, device = proxies, training, proxies.device
        self._factor_N = torch.from_numpy(factor_N).to(device, torch.float32)
        # A graph reads and writes always the same memory: what changes from step to step is copied there.
        (tokens, positions), labels = like
        self._batch = StackedBatch(
            ModelInputs(tokens.to(device), None if positions is None else positions.to(device)), labels.to(device)
        )
        self._gradients_NP, self._mean_NP, self._square_NP = (torch.zeros_like(proxies.rows_NP) for _ in range(3))
        self._rate, self._decay, self._root_correction = (torch.zeros((), device=device) for _ in range(3))
        self.losses_N = torch.zeros(proxies.num_proxies, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_steps = 0

    def capture(self) -> str:
        """Record a step as a CUDA graph; call it before the first step.

        Returns:
            Why that cannot be done, which leaves steps that are asked for operation by operation; empty if it was done.
        """
        # At a learning rate of 0 nothing moves but the moments.
        self._root_correction.fill_(1)
        device, graph = self._proxies.device, torch.cuda.CUDAGraph()
        try:
            aside = torch.cuda.Stream(device)
            aside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP_STEPS):
                    self._step()
            torch.cuda.current_stream(device).wait_stream(aside)
            torch.cuda.empty_cache()  # the graph takes memory of its own
            # Other threads of this process, such as NCCL's, may ask the GPU something meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize(device)
            return first_line(error)
        finally:
            self._mean_NP.zero_()
            self._square_NP.zero_()
        self._graph = graph
        return ""

    def take(self, batch: StackedBatch, *, learning_rate: float) -> None:
        """A step on a batch that lies in the CPU's memory."""
        for here, there in zip((*batch.inputs, batch.labels_NBT), (*self._batch.inputs, self._batch.labels_NBT), strict=True):
            if here is not None and there is not None:
                there.copy_(here.pin_memory() if there.is_cuda else here, non_blocking=True)
        self._num_steps += 1
        first, second = (1 - beta**self._num_steps for beta in self._training.adam_betas)
        self._rate.fill_(learning_rate / first)
        self._decay.fill_(learning_rate * self._training.weight_decay)
        self._root_correction.fill_(second**0.5)
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    def _step(self) -> None:
        rows_NP, gradients_NP, training = self._proxies.rows_NP, self._gradients_NP, self._training
        inputs, labels_NBT = self._batch
        self.losses_N.copy_(self._proxies.gradients(inputs, labels_NBT, factor_N=self._factor_N, gradients_NP=gradients_NP))
        if training.gradient_clipping:
            norms_N = torch.linalg.vector_norm(gradients_NP, dim=1)
            gradients_NP.mul_((training.gradient_clipping / (norms_N + 1e-6)).clamp(max=1.0)[:, None])
        first, second = training.adam_betas
        self._mean_NP.lerp_(gradients_NP, 1 - first)
        self._square_NP.mul_(second).addcmul_(gradients_NP, gradients_NP, value=1 - second)
        rows_NP.mul_(1 - self._decay * self._proxies.decays_P)
        rows_NP.sub_(self._rate * self._mean_NP / (self._square_NP.sqrt() / self._root_correction + _ADAM_EPSILON))
