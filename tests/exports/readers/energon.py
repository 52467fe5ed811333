"""Megatron-Energon's own data sets and loader over an export, and its own preparation of the same folders; prints what they find.

Usage: energon.py DIRECTORY NUM_WORKERS NUM_BLENDED
"""

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from click.testing import CliRunner
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_train_dataset,
    get_val_dataset,
    stateless,
)
from megatron.energon.tools.prepare import command as prepare


@dataclass
class Block(Sample):
    tokens: np.ndarray
    mask: np.ndarray | None


@stateless
def cook(sample: dict[str, Any]) -> Block:
    return Block(**basic_sample_keys(sample), tokens=sample["tokens.npy"], mask=sample.get("loss_mask.npy"))


class TaskEncoder(DefaultTaskEncoder):
    cookers = (Cooker(cook),)

    def batch(self, samples: list[Block]) -> list[Block]:
        return samples


def main(directory: Path, num_workers: int, num_blended: int) -> None:
    settings = {
        "worker_config": WorkerConfig(rank=0, world_size=1, num_workers=num_workers),
        "batch_size": 8,
        "task_encoder": TaskEncoder(),
    }
    order = {"shuffle_buffer_size": 16, "max_samples_per_sequence": 4}
    epoch = get_train_dataset(directory / "epochs.yaml", repeat=False, **order, **settings)
    shares = get_train_dataset(directory / "shares.yaml", **order, **settings)
    held_out = get_val_dataset(directory / "epochs.yaml", **settings)
    result = {
        "epoch": read(get_loader(epoch)),
        "shares": read(islice(get_loader(shares), num_blended // 8)),
        "val": read(get_loader(held_out)),
        "prepared": [prepared(path.parent) for path in sorted(directory.glob("*/*/.nv-meta"))],
    }
    run(prepare, directory / "epochs.yaml")
    run(prepare, directory / "shares.yaml")
    print(json.dumps(result))


def read(batches: Iterable[list[Block]]) -> list[Any]:
    return [
        [
            block.__key__,
            block.__subflavors__["source"],
            block.tokens.tolist(),
            None if block.mask is None else block.mask.tolist(),
        ]
        for batch in batches
        for block in batch
    ]


def prepared(folder: Path) -> dict[str, Any]:
    """Whether Energon's preparation of the same tars, which also refuses a key that comes twice, writes the same files."""
    with TemporaryDirectory() as other:
        for tar in folder.glob("*.tar"):
            shutil.copy(tar, other)
        splits = ["--split-parts", f"{folder.parent.name}:.*"]
        run(prepare, other, "--non-interactive", *splits, "--sample-type", "CrudeWebdataset", "--num-workers", "1")
        ours, theirs = ({path.name: path.read_bytes() for path in find(root)} for root in (folder, Path(other)))
        return {
            "folder": folder.name,
            "differ": [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)],
        }


def find(root: Path) -> list[Path]:
    return [*root.glob("*.tar.idx"), root / ".nv-meta" / "dataset.yaml"]


def run(command: Any, *arguments: object) -> None:
    done = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
