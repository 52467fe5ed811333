"""What ranks may differ in, and what not: versions, and the GPUs of their nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastmix_data.errors import FastmixError
from train.ranks.facts import RankFacts, check_facts

VERSIONS = {"Python": "3.11.2", "torch": "2.6.0"}
RANKS = tuple(RankFacts(n, n % 2, f"node-{n // 2}", 2, f"GPU-{n}", VERSIONS) for n in range(4))


def test_ranks_with_a_gpu_each_fit_together() -> None:
    check_facts(RANKS)
    check_facts([replace(each, num_gpus=1) for each in RANKS])  # SLURM shows each task one GPU
    check_facts([replace(each, num_gpus=0, gpu="") for each in RANKS])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"versions": VERSIONS | {"torch": "2.7.1"}},
            "rank 3 on node-1: it has torch 2.7.1, and rank 0 on node-0 has 2.6.0; install",
        ),
        ({"num_gpus": 0, "gpu": ""}, "rank 3 on node-1: it sees no GPU, and rank 0 on node-0 sees some; look at nvidia-smi"),
        ({"local_rank": 2, "gpu": ""}, "it is number 2 of its node, which has 2 GPUs; start at most 2 ranks on each node"),
        ({"gpu": "GPU-2"}, "rank 3 on node-1: it has the same GPU as rank 2, which NCCL cannot connect; start one rank for each"),
    ],
)
def test_one_that_does_not_fit_is_named_with_the_remedy(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(FastmixError) as caught:
        check_facts([*RANKS[:3], replace(RANKS[3], **wrong)])  # type: ignore[arg-type]
    assert said in str(caught.value)
