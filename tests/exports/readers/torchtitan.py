"""What torchtitan gets of an export, by a configuration that its own command line finds, in the order in which ranks read it.

python torchtitan.py FASTMIX EXPORT CONFIGURATIONS SEQ_LEN
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

fastmix, export, configurations, seq_len = sys.argv[1:]
# This file has torchtitan's name, so its folder must not be looked into.
sys.path[0:1] = [fastmix, export, configurations]

import torch.distributed.checkpoint as dcp  # noqa: E402
from torchtitan.config import ConfigManager  # noqa: E402

given = ["--module", "configurations", "--training.seq_len", seq_len]


def config(name: str, *more: str) -> Any:
    return ConfigManager().parse_args([*given, "--config", name, *more])


def loaders(ranks: int, batch: int, *more: str) -> list[Any]:
    built = config("tiny_on_corpus", *more).dataloader
    runtime = {"tokenizer": None, "seq_len": int(seq_len), "local_batch_size": batch, "snapshot_every_n_steps": 1}
    return [built.build(dp_world_size=ranks, dp_rank=rank, **runtime) for rank in range(ranks)]


def steps(of_ranks: list[Any]) -> Iterator[list[list[list[int]]]]:
    """Sequences of each step of all ranks, in the global order: tokens, labels and positions."""
    for batches in zip(*of_ranks, strict=True):
        parts = [(inputs["input"], labels, inputs["positions"]) for inputs, labels in batches]
        yield [[values[row].tolist() for values in part] for row in range(len(parts[0][0])) for part in parts]


first = loaders(2, 3)
running = steps([iter(loader) for loader in first])
before = [sequence for _ in range(4) for sequence in next(running)]
with tempfile.TemporaryDirectory() as folder:
    dcp.save({"dataloader": first[0]}, checkpoint_id=folder)
    second = loaders(3, 1, "--dataloader.num_workers", "1")
    for loader in second:
        dcp.load({"dataloader": loader}, checkpoint_id=folder)
after = [sequence for step in steps(second) for sequence in step]
try:
    config("too_small")
    refused = ""
except ValueError as error:
    refused = str(error)
print(json.dumps({"sequences": before + after, "refused": refused}))
