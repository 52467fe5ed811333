"""A row of the GPU check's table, which a part prints as soon as it knows it."""

from __future__ import annotations

import torch
from check import NO_GPU, OFF, OK

__all__ = ["NO_GPU", "ON_GPU", "gib", "peak", "reset_peak", "say"]
ON_GPU = torch.cuda.is_available()  # without one everything is made tiny


def say(check: str, setting: str, found: str, *, wanted: str = "", ok: bool | None = None) -> None:
    """Print a row.

    Args:
        ok: whether `found` is as wanted; None where nothing is asked for.
    """
    verdict = "" if ok is None else OK if ok else OFF
    print(f"| {check} | {setting} | {found} | {wanted} | {verdict} |", flush=True)


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
