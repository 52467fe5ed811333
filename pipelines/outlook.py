"""`fastmix search --plan`: steps, memory, time and cost of a search before anything of it starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fastmix_data.errors import RecipeError
from fastmix_data.text_table import aligned
from fastmix_data.units import format_count
from train.memory.fitting_batch import memory_by_stage
from train.memory.pass_memory import meta_model
from train.memory.rank_memory import RankMemory
from train.proxy.deepspeed_config import computes_in_bf16
from train.proxy.training import ProxyPlan, micro_batch
from train.recording.model_flops import ModelFlops, own_device_name, peak_flops
from train.search.plan import SearchPlan

# Parameters in millions, and the share of its peak that an H200 reached in bf16 under ZeRO-1 (`scripts/gpu_check.sh`): without and with
# training.compile. A ZeRO-3 step took twice as long, and no step was shorter than the last number.
_SIZES, _REACHED, _REACHED_COMPILED = (4, 11, 98, 299, 1010), (0.004, 0.074, 0.195, 0.21, 0.28), (0.004, 0.088, 0.31, 0.29, 0.29)
_PART_OF_ZERO_3, _LEAST_SECONDS_OF_STEP = 0.5, 0.035
_REACHED_BY_CORE = 0.65  # `scripts/bench/plain_training.py`
_MEASURED_SIZE, _MEASURED_TIMES = 1024, 5


@dataclass(frozen=True)
class Outlook:
    """What a search is going to be.

    Attributes:
        stages: tokens that each trains on.
        num_sequences: of a pass on one rank.
        scoring_share: operations of scores over those of the training beside them.
        memory: of a rank by ZeRO stage.
        num_flops: operations of everything.
        device: whose peak time is worked out from.
        utilisation: share of the ranks' peak that training is taken to reach; the network between nodes is left out.
        seconds: of everything.
    """

    num_parameters: int
    num_trained: int
    precision: str
    num_ranks: int
    stages: Mapping[str, int]
    tokens_per_step: int
    num_sequences: int
    sequence_length: int
    scoring_share: float
    zero_stage: int
    memory: Mapping[int, RankMemory]
    num_flops: float
    device: str
    utilisation: float
    seconds: float

    @property
    def device_hours(self) -> float:
        """Of all ranks together."""
        return self.seconds * self.num_ranks / 3600

    def as_dict(self, *, price: float | None) -> dict[str, Any]:
        """JSON-able form."""
        memory = {str(stage): {**vars(found), "most": found.most} for stage, found in self.memory.items()}
        cost = {} if price is None else {"cost": self.device_hours * price}
        return {**vars(self), "stages": dict(self.stages), "memory": memory, "device_hours": self.device_hours, **cost}


def outlook(plan: SearchPlan, *, num_ranks: int, gpu: str | None = None) -> Outlook:
    """Work it out; nothing is trained and no shard is read.

    Args:
        gpu: the card that ranks run on; this machine's device when not given.

    Raises:
        RecipeError: the batch cannot be divided over the ranks, or the card is not in the table of peaks.
    """
    proxy, search, on_gpu = plan.proxy, plan.search, gpu is not None or torch.cuda.is_available()
    if gpu is not None and proxy.training.precision == "auto":  # all cards of the table have bf16
        proxy = replace(proxy, training=proxy.training.model_copy(update={"precision": "bf16"}))
    training, num_sequences = proxy.training, micro_batch(proxy.training, num_ranks)
    model = meta_model(proxy)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    flops = ModelFlops.of(
        proxy.config, num_parameters=num_parameters, num_trained=num_trained, sequence_length=training.sequence_length
    )
    reference = training.num_tokens if plan.target.reference_mixture is not None else 0
    main, trials = plan.main.training.num_tokens, plan.trial_steps * training.tokens_per_step
    interval = search.update_interval
    with_scores = flops.of_updates(training, search, num_steps=interval)
    scoring = with_scores / (flops.training * training.tokens_per_step * interval) - 1
    # A trial measures the target on up to a quarter of its tokens.
    num_flops = flops.training * (main * (1 + scoring) + trials + reference) + flops.forward * trials / 4
    peak, device = _peak(gpu)
    reached = _reached(num_parameters, proxy) if on_gpu else _REACHED_BY_CORE
    seconds = num_flops / (num_ranks * peak * reached)
    if on_gpu:
        seconds = max(seconds, (main + trials + reference) / training.tokens_per_step * _LEAST_SECONDS_OF_STEP)
    return Outlook(
        num_parameters=num_parameters,
        num_trained=num_trained,
        precision="bf16" if computes_in_bf16(training) else "fp32",
        num_ranks=num_ranks,
        stages={name: tokens for name, tokens in (("reference", reference), ("search", main), ("trials", trials)) if tokens},
        tokens_per_step=training.tokens_per_step,
        num_sequences=num_sequences,
        sequence_length=training.sequence_length,
        scoring_share=scoring,
        zero_stage=proxy.deepspeed.zero_stage,
        memory=memory_by_stage(
            proxy,
            stages=(0, 1, 2, 3),
            num_ranks=num_ranks,
            num_sequences=num_sequences,
            is_scored=search.hypergradient == "all",
            remembers=search.target_memory > 0,
            on_gpu=on_gpu,
        ),
        num_flops=num_flops,
        device=device,
        utilisation=reached,
        seconds=seconds,
    )


def _reached(num_parameters: int, proxy: ProxyPlan) -> float:
    """Share of a GPU's peak, between the sizes that were measured by the logarithm of parameters, beyond them as at the nearest."""
    measured = _REACHED_COMPILED if proxy.training.compile else _REACHED
    found = float(np.interp(np.log(num_parameters / 1e6), np.log(_SIZES), measured))
    return found * _PART_OF_ZERO_3 if proxy.deepspeed.zero_stage == 3 else found


def _peak(gpu: str | None) -> tuple[float, str]:
    """Operations a second of a device, and its name."""
    name = gpu or own_device_name()
    peak = peak_flops(name)
    if peak is not None:
        return peak, name
    if gpu is not None:
        raise RecipeError(
            f"--gpu {gpu}", "is not in the table of peaks", "A100, H100, H200, B200, L40S and MI300X are some that are"
        )
    return _measured_peak(), "this machine's core" if name == "cpu" else name


def _measured_peak() -> float:
    """Operations a second of a product of matrices here, on one thread where there is no GPU, as each rank has a core."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    factor = torch.ones(_MEASURED_SIZE, _MEASURED_SIZE, device=device)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    float((factor @ factor)[0, 0])
    started = time.perf_counter()
    for _ in range(_MEASURED_TIMES):
        float((factor @ factor)[0, 0])
    taken = time.perf_counter() - started
    torch.set_num_threads(num_threads)
    return 2 * _MEASURED_SIZE**3 * _MEASURED_TIMES / taken


def format_outlook(found: Outlook, *, price: float | None) -> str:
    """What it came to, for people."""
    trained = "" if found.num_trained == found.num_parameters else f", {format_count(found.num_trained)} of them trained"
    stages = ", ".join(f"{name} {format_count(tokens)}" for name, tokens in found.stages.items())
    steps = sum(found.stages.values()) // found.tokens_per_step
    cost = "" if price is None else f", {found.device_hours * price:,.2f} at {price:g} an hour"
    rows = [
        [
            f"{'>' if stage == found.zero_stage else ' '} {stage}",
            *(_gigabytes(size) for size in (of.parameters, of.optimizer, of.buckets + of.remembered_gradient)),
            *(_gigabytes(size) for size in (of.backward, of.scoring, of.step, of.most)),
        ]
        for stage, of in found.memory.items()
    ]
    head = ["ZeRO", "parameters", "optimizer", "buffers", "+ training", "or scoring", "or step", "most"]
    return "\n".join(
        [
            f"proxy: {format_count(found.num_parameters)} parameters{trained}, {found.precision}",
            f"tokens: {stages}; {steps:,} steps of {format_count(found.tokens_per_step)}; scores add {found.scoring_share:.1%} to "
            "the operations of the search",
            f"memory of each of {found.num_ranks} ranks in GB, with passes of {found.num_sequences} x {found.sequence_length} tokens:",
            aligned([head, *rows]),
            f"time: {found.num_flops:.2e} operations, about {_duration(found.seconds)} on {found.num_ranks} x {found.device} at "
            f"{found.utilisation:.1%} of its peak, {found.device_hours:,.1f} hours of one{cost}",
        ]
    )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
