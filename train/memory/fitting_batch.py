"""`training.micro_batch: auto`: as many sequences in a pass as the memory of each rank holds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from fastmix_data.errors import RecipeError
from fastmix_data.machine import free_memory
from fastmix_data.units import format_count
from train.memory.pass_memory import meta_model, pass_bytes
from train.memory.rank_memory import RankMemory, ZeroSpread, rank_memory
from train.proxy.deepspeed_config import computes_in_bf16, reduced_at_once, stage_taken
from train.proxy.engine import own_device
from train.proxy.training import ProxyPlan, micro_batch

# Allocators leave gaps, and libraries take some hundred megabytes of a GPU for themselves.
_USED_SHARE = 0.85
_SURELY_SMALL = 0.02  # of the memory there is
_BYTES_OF_A_TOKEN = 100  # for each block and unit of its width: three times what blocks of transformers keep in float32


def device_memory() -> int:
    """Bytes of this process's GPU; where there is none, those of the machine or its container that are free."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(own_device()).total_memory)
    return free_memory()


def spread_of(plan: ProxyPlan, *, num_ranks: int, num_trained: int, on_gpu: bool) -> ZeroSpread:
    """How a plan's proxies are spread.

    Args:
        num_trained: parameters of the model that are not frozen.
    """
    offloaded = plan.deepspeed.config.get("zero_optimization", {}).get("offload_optimizer", {})
    return ZeroSpread(
        stage_taken(plan.training, plan.deepspeed),
        num_ranks,
        computes_in_bf16=computes_in_bf16(plan.training),
        fuses_optimizer=on_gpu,
        reduced_at_once=reduced_at_once(plan.deepspeed, num_trained=num_trained),
        keeps_optimizer=not on_gpu or offloaded.get("device", "none") == "none",
    )


def memory_of(plan: ProxyPlan, *, num_ranks: int, num_sequences: int, is_scored: bool, remembers: bool = False) -> RankMemory:
    """Bytes of a rank whose passes are of so many sequences."""
    stages = [plan.deepspeed.zero_stage]
    (memory,) = memory_by_stage(
        plan, stages=stages, num_ranks=num_ranks, num_sequences=num_sequences, is_scored=is_scored, remembers=remembers
    ).values()
    return memory


def memory_by_stage(
    plan: ProxyPlan,
    *,
    stages: Sequence[int],
    num_ranks: int,
    num_sequences: int,
    is_scored: bool,
    remembers: bool,
    on_gpu: bool = False,
) -> dict[int, RankMemory]:
    """The same under several ZeRO stages, whatever stage the plan has; what a pass takes is counted once, as it is the same in all.

    Args:
        on_gpu: foresee a GPU, whatever this machine has.
    """
    on_gpu = on_gpu or torch.cuda.is_available()
    model, in_pass = meta_model(plan), pass_bytes(plan, num_sequences=num_sequences, on_gpu=on_gpu)
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = {}
    for stage in stages:
        staged = replace(plan, deepspeed=plan.deepspeed.model_copy(update={"zero_stage": stage}))
        found[stage] = rank_memory(
            model,
            spread=spread_of(staged, num_ranks=num_ranks, num_trained=num_trained, on_gpu=on_gpu),
            num_pass_bytes=in_pass,
            num_scored=num_trained if is_scored else 0,
            remembers=remembers,
        )
    return found


def with_fitting_batch(
    plan: ProxyPlan, *, num_ranks: int, ranks_on_machine: int, is_scored: bool = False, remembers: bool = False
) -> ProxyPlan:
    """A plan that says how many sequences a pass has, where it left that to the memory there is.

    All ranks of the process group call it together, if there is one, and come to the same.

    Args:
        ranks_on_machine: that share the memory of this machine, where there is no GPU.

    Raises:
        RecipeError: not even one sequence fits, as far as can be foreseen.
    """
    if plan.training.micro_batch != "auto":
        return plan
    share, available = micro_batch(plan.training, num_ranks), device_memory()
    if not torch.cuda.is_available():
        available //= ranks_on_machine
    if dist.is_initialized() and dist.get_world_size() > 1:
        smallest = torch.tensor([available], device=own_device())
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        available = int(smallest)
    size = (
        share
        if _is_small(plan, share, available)
        else _largest_fitting(
            plan, share, int(available * _USED_SHARE), num_ranks=num_ranks, is_scored=is_scored, remembers=remembers
        )
    )
    return replace(plan, training=plan.training.model_copy(update={"micro_batch": size}))


def _is_small(plan: ProxyPlan, share: int, available: int) -> bool:
    """Whether all of a rank's share fits by far, which a few multiplications tell."""
    text = plan.config.get_text_config()
    layers, width = (getattr(text, name, None) for name in ("num_hidden_layers", "hidden_size"))
    if not isinstance(layers, int) or not isinstance(width, int):
        return False
    tokens = share * plan.training.sequence_length
    num_parameters = 2 * text.vocab_size * width + 12 * layers * width**2
    needed = tokens * (_BYTES_OF_A_TOKEN * layers * width + 16 * text.vocab_size) + 32 * num_parameters
    return bool(needed < _SURELY_SMALL * available)


def _largest_fitting(plan: ProxyPlan, share: int, available: int, *, num_ranks: int, is_scored: bool, remembers: bool) -> int:
    def most(num_sequences: int) -> int:
        memory = memory_of(plan, num_ranks=num_ranks, num_sequences=num_sequences, is_scored=is_scored, remembers=remembers)
        return memory.most

    one = most(1)
    if one > available:
        problem = (
            f"a pass of one sequence needs about {format_count(one)}B on each rank, and there are {format_count(available)}B"
        )
        remedy = "use a smaller proxy, a higher deepspeed.zero_stage on more ranks, or training.activation_checkpointing: true"
        raise RecipeError("training.micro_batch", problem, remedy)
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    return sizes[bisect_right(sizes, available, lo=1, key=most) - 1]
