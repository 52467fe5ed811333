"""A row of the GPU check's table, which a part prints as soon as it knows it."""

from __future__ import annotations

import torch
from check import NO_GPU, OFF, OK

from train.memory.pass_memory import meta_model
from train.proxy.training import ProxyPlan
from train.recording.model_flops import ModelFlops, own_device_name, peak_flops

__all__ = ["NO_GPU", "ON_GPU", "gib", "mfu_of", "peak", "reset_peak", "say"]
ON_GPU = torch.cuda.is_available()  # without one everything is made tiny


def say(check: str, setting: str, found: str, *, mfu: float | None = None, wanted: str = "", ok: bool | None = None) -> None:
    """Print a row.

    Args:
        mfu: model FLOPs utilisation, where a speed was measured and the card's peak is known.
        ok: whether `found` is as wanted; None where nothing is asked for.
    """
    verdict = "" if ok is None else OK if ok else OFF
    utilisation = "" if mfu is None else f"{mfu:.1%}"
    print(f"| {check} | {setting} | {found} | {utilisation} | {wanted} | {verdict} |", flush=True)


def mfu_of(plan: ProxyPlan, tokens_per_second: float, *, num_gpus: int = 1) -> float | None:
    """Share of the cards' peak that training so many tokens a second comes to; None where the peak is not known."""
    peak_of_one = peak_flops(own_device_name())
    if peak_of_one is None:
        return None
    count = sum(parameter.numel() for parameter in meta_model(plan).parameters())
    length = plan.training.sequence_length
    flops = ModelFlops.of(plan.config, num_parameters=count, num_trained=count, sequence_length=length)
    return flops.training * tokens_per_second / (num_gpus * peak_of_one)


def gib(num_bytes: float) -> str:
    """Bytes as a reader of `nvidia-smi` counts them."""
    return f"{num_bytes / 2**30:.2f} GiB"


def reset_peak() -> None:
    """Forget what this process has allocated at most so far."""
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> str:
    """The most that this process's tensors have taken since then."""
    return f", peak {gib(torch.cuda.max_memory_allocated())}" if ON_GPU else ""
