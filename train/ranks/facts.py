"""What ranks tell each other when they meet, and what is refused then: other versions, GPUs that are shared or missing."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from fastmix_data.errors import FastmixError
from fastmix_data.machine import LaunchedRank

_PACKAGES = ("fastmix", "torch", "deepspeed", "transformers", "numpy")


@dataclass(frozen=True)
class RankFacts:
    """What others must know of a rank.

    Attributes:
        host: name of its machine.
        num_gpus: that the process sees.
        gpu: the one that it takes, by the driver's identity; empty where there is none.
        versions: by the package's name.
    """

    rank: int
    local_rank: int
    host: str
    num_gpus: int
    gpu: str
    versions: dict[str, str]

    def __str__(self) -> str:
        """As messages name it."""
        return f"rank {self.rank} on {self.host}"


def own_facts(launched: LaunchedRank) -> RankFacts:
    """Facts of this process."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = gpu_number(launched.local_rank, num_gpus=num_gpus)
    gpu = "" if device is None else str(torch.cuda.get_device_properties(device).uuid)
    versions = {"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    return RankFacts(launched.rank, launched.local_rank, socket.gethostname(), num_gpus, gpu, versions)


def gpu_number(local_rank: int, *, num_gpus: int) -> int | None:
    """The GPU of a rank among those that its process sees; None where none is left for it.

    SLURM may give each task one GPU, and show it no other: that one is number 0 for all of them.

    >>> [gpu_number(rank, num_gpus=2) for rank in range(3)], gpu_number(3, num_gpus=1)
    ([0, 1, None], 0)
    """
    if num_gpus == 1:
        return 0
    return local_rank if local_rank < num_gpus else None


def set_own_variables(launched: LaunchedRank) -> None:
    """Give DeepSpeed the variables that it looks for, whatever the launcher calls them."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = gpu_number(launched.local_rank, num_gpus=num_gpus)
    local_rank = launched.local_rank if device is None else device
    os.environ |= {"RANK": str(launched.rank), "WORLD_SIZE": str(launched.world_size), "LOCAL_RANK": str(local_rank)}


def check_facts(facts_R: Sequence[RankFacts]) -> None:
    """Refuse ranks that cannot train together; all of them find the same.

    Raises:
        FastmixError: names the first rank that does not fit, and what there is elsewhere.
    """
    first = facts_R[0]
    for each in facts_R:
        for name, found in each.versions.items():
            if found != first.versions[name]:
                problem = f"it has {name} {found}, and {first} has {first.versions[name]}"
                raise FastmixError(each, problem, "install the same versions on all nodes")
        if bool(each.num_gpus) != bool(first.num_gpus):
            has, other = ("GPUs", "none") if each.num_gpus else ("no GPU", "some")
            raise FastmixError(
                each, f"it sees {has}, and {first} sees {other}", "look at nvidia-smi and CUDA_VISIBLE_DEVICES on both"
            )
        if each.num_gpus and not each.gpu:
            problem = f"it is number {each.local_rank} of its node, which has {each.num_gpus} GPUs"
            raise FastmixError(each, problem, f"start at most {each.num_gpus} ranks on each node")
    users: dict[str, RankFacts] = {}
    for each in facts_R:
        user = users.setdefault(each.gpu, each)
        if each.gpu and user is not each:
            problem = f"it has the same GPU as rank {user.rank}, which NCCL cannot connect"
            raise FastmixError(each, problem, "start one rank for each GPU, and give each the GPUs of its node or one of its own")
