"""Whether proxies can be trained side by side on this device, whether that pays, and how many fit: tried, not told from names."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from fastmix_data.messages import first_line
from fastmix_data.units import format_count
from train.proxy.example_check import stir
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs
from train.proxy.training import ProxyPlan
from train.side_by_side.stacked import StackedProxies
from train.side_by_side.training import SideBySideSteps, fresh_proxies, stack_batches

_TOLERANCE = 1e-4  # of the largest logit; float32 agrees to 1e-6
_PAYS_BELOW = 1.5  # seconds of a step of two over those of one; a GPU that one proxy keeps busy takes twice as long
_TIMED_STEPS = 3
_MEMORY_SHARE = 0.7  # of what is free; a graph's memory is another than that of the steps before it
_MOST_ON_CPU = 64


@dataclass(frozen=True)
class SideBySideTrial:
    """What was found: how many proxies can be trained at once, and where it is 0, why."""

    most_at_once: int
    why_not: str = ""


def try_side_by_side(plan: ProxyPlan, *, device: torch.device) -> SideBySideTrial:
    """Take a step of one and of two proxies, and compare a stack's logits with the model's own."""
    name = "the proxy"
    try:
        name = type(plan.build_model(seed=0)).__name__
        alone, pair = (_measure(plan, num_proxies=number, device=device) for number in (1, 2))
        found = _pays_and_fits(name, alone, pair, device=device)
        if found.most_at_once and not _agrees(plan):
            return SideBySideTrial(0, f"{name} computes something else when it is given a mask of what each token may see")
        return found
    except Exception as error:  # of a model's own code, of operations that have no rule for stacks, or for lack of memory
        return SideBySideTrial(0, f"{name} cannot be stacked ({first_line(error)})")


class _Measured(NamedTuple):
    """Shortest time of a step, and the most memory that proxies and steps took."""

    seconds: float
    num_bytes: int


def _pays_and_fits(name: str, alone: _Measured, pair: _Measured, *, device: torch.device) -> SideBySideTrial:
    if device.type != "cuda":
        return SideBySideTrial(_MOST_ON_CPU)
    if pair.seconds > _PAYS_BELOW * alone.seconds:
        return SideBySideTrial(
            0, f"one {name} keeps the GPU busy, where a step of two takes {pair.seconds / alone.seconds:.1f} times as long"
        )
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    most = int(_MEMORY_SHARE * free / max(1, pair.num_bytes - alone.num_bytes))
    if most < 2:
        return SideBySideTrial(0, f"two {name} do not fit into the {format_count(free)}B of memory that the GPU has free")
    return SideBySideTrial(most)


def _agrees(plan: ProxyPlan) -> bool:
    """Whether two stacked proxies have the logits of a model that was given no mask, and chose its way of attention itself.

    Parameters are moved away from where they start, for there attention hardly counts. On CPU, where float32 is float32.
    """
    model: Any = plan.build_model(seed=0)
    stir(model)
    model.eval()
    inputs = _tokens_and_positions(plan, num_sequences=2)
    with torch.no_grad():
        expected_BTV = model(**model_inputs(inputs, with_positions=has_learned_positions(model))).logits
    state = {name: value.clone() for name, value in model.state_dict().items()}
    proxies = StackedProxies(model, num_proxies=2, device=torch.device("cpu"), dtype=torch.float32)
    for number in range(2):
        proxies.set_parameters(number, state)
    return bool((proxies.logits(inputs) - expected_BTV).abs().max() <= _TOLERANCE * expected_BTV.abs().max())


def _measure(plan: ProxyPlan, *, num_proxies: int, device: torch.device) -> _Measured:
    on_gpu, times = device.type == "cuda", []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    proxies = fresh_proxies(plan, seeds=[0] * num_proxies, device=device)
    inputs = _tokens_and_positions(plan, num_sequences=num_proxies * plan.training.global_batch)
    batch = stack_batches(inputs, inputs.tokens_BT, num_proxies=num_proxies)
    factor_N = np.full(num_proxies, 1 / plan.training.tokens_per_step)
    steps = SideBySideSteps(proxies, training=plan.training, factor_N=factor_N, like=batch)
    for _ in range(1 + _TIMED_STEPS if on_gpu else 1):
        started = time.monotonic()
        steps.take(batch, learning_rate=plan.training.learning_rate)
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - started)
    return _Measured(min(times), torch.cuda.max_memory_allocated(device) - before if on_gpu else 0)


def _tokens_and_positions(plan: ProxyPlan, *, num_sequences: int) -> ModelInputs:
    """Random tokens; positions that begin anew in the middle if those of the plan's data begin anew anywhere."""
    length, vocab_size = plan.training.sequence_length, plan.config.get_text_config().vocab_size
    tokens_BT = torch.randint(vocab_size, (num_sequences, length), generator=torch.Generator().manual_seed(0))
    if not any(plan.kept_apart.values()):
        return ModelInputs(tokens_BT)
    positions_T = torch.cat([torch.arange(length // 2), torch.arange(length - length // 2)])
    return ModelInputs(tokens_BT, positions_T.repeat(num_sequences, 1))
