"""How emit and the loader's first batch grow with the number of shards: a catalog of up to 1,000,000 of them, 500 sources, 20 T tokens.

The catalog names shards that are not there, which `emit` does not open. Of those that the first batch is read from, files are made: all of
their size, with holes but for the first sample. Each step is a process of its own, which reports its time and the most memory it held.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.manifest.written_order import order_of
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow, load_catalog
from fastmix_data.shards.shard_format import ShardLayout, encode_shard, shard_layout
from fastmix_data.workdir import Workdir

BLOCK_TOKENS, SEQUENCE_LENGTH, BATCH = 8192, 8192, 256
NUM_SOURCES, TOTAL_TOKENS, MOST_SHARDS = 500, 20 * 10**12, 10**6


def make_catalog(root: Path, *, num_shards: int) -> None:
    """Sources of very different sizes; a shard of four ends a partition, and so with a short block."""
    rng = np.random.default_rng(0)
    share_K = rng.lognormal(sigma=1.5, size=NUM_SOURCES)
    shards_K = np.maximum(1, num_shards * share_K / share_K.sum()).astype(int)
    layout = ShardLayout(BLOCK_TOKENS, np.dtype("<u4"))
    most_blocks = TOTAL_TOKENS // MOST_SHARDS // BLOCK_TOKENS
    rows = []
    for source, count in enumerate(shards_K.tolist()):
        for number, short in enumerate(rng.integers(1, BLOCK_TOKENS, count).tolist()):
            ends = number % 4 == 3 or number == count - 1
            num_tokens = most_blocks * BLOCK_TOKENS - (short if ends else 0)
            path = f"shards/source{source:03d}/train-{number // 4:06d}-{number % 4:05d}.tar"
            num_labels = num_tokens - ends
            sha256 = hashlib.sha256(path.encode()).hexdigest()
            size = layout.num_bytes(most_blocks)
            rows.append(
                ShardRow(
                    f"source{source:03d}",
                    "train",
                    path,
                    most_blocks,
                    num_tokens,
                    num_labels,
                    num_labels,
                    9,
                    "<u4",
                    False,
                    size,
                    sha256,
                )
            )
    info = CatalogInfo(BLOCK_TOKENS, 1 << 17, 0, "0" * 64, sources=tuple(f"source{number:03d}" for number in range(NUM_SOURCES)))
    Catalog(root, info, rows).save(Workdir(root).catalog)


def emit(root: Path) -> None:
    """Three quarters of all tokens, by weights that have nothing to do with the sources' sizes: some are repeated, some are not used up."""
    catalog = load_catalog(Workdir(root).catalog)
    weights_K = np.random.default_rng(1).dirichlet(np.ones(NUM_SOURCES))
    mixture = Mixture(weights=dict(zip(catalog.sources, weights_K.tolist(), strict=True)))
    emit = EmitSection(token_budget=int(catalog.num_tokens_K().sum() * 3 // 4), max_epochs=4)
    emit_manifest(catalog, mixture, emit=emit, directory=Workdir(root).manifest.root, replace=True)


def make_files(root: Path) -> None:
    """Shards of the first batch."""
    manifest = load_manifest(Workdir(root).manifest.root)
    located = order_of(manifest, sequence_length=SEQUENCE_LENGTH).locate(np.arange(BATCH))
    layout = shard_layout(BLOCK_TOKENS, "<u4", False)
    first = encode_shard(np.zeros(BLOCK_TOKENS + 1, np.uint32), layout=layout, key_prefix="a-", num_blocks=1)
    for number in np.unique(located.part_N).tolist():
        path = root / manifest.parts[number].path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(first[: layout.stride].tobytes())
            file.truncate(manifest.parts[number].bytes)


def first_batch(root: Path) -> None:
    """From the path of the manifest to tensors."""
    item = next(iter(ManifestDataset(Workdir(root).manifest.root, sequence_length=SEQUENCE_LENGTH, batch_size=BATCH)))
    assert item["tokens"].shape == (BATCH, SEQUENCE_LENGTH)


STEPS: dict[str, Callable[[Path], None]] = {"emit": emit, "make_files": make_files, "first_batch": first_batch}


def measured(step: str, root: Path) -> dict[str, float]:
    """Run a step in a process of its own."""
    command = [sys.executable, __file__, "--directory", str(root), "--step", step]
    printed: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return printed


def run_step(step: str, root: Path) -> None:
    """Print what a step took."""
    started, cpu = time.perf_counter(), time.process_time()
    STEPS[step](root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "gigabytes": peak}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--directory", type=Path, help="where to write")
    parser.add_argument("--step", choices=STEPS, help="one step alone, in a folder that has what it needs")
    options = parser.parse_args()
    if options.step:
        run_step(options.step, options.directory)
        return
    print(f"{'shards':>9} {'parts':>9} {'emit':>8} {'CPU':>8} {'peak':>8} {'first batch':>12} {'CPU':>8} {'peak':>8}")
    with tempfile.TemporaryDirectory(prefix="fastmix-bench-", dir=options.directory) as folder:
        root = Path(folder)
        for num_shards in options.shards:
            make_catalog(root / str(num_shards), num_shards=num_shards)
            emitted = measured("emit", root / str(num_shards))
            measured("make_files", root / str(num_shards))
            batch = measured("first_batch", root / str(num_shards))
            num_parts = json.loads(Workdir(root / str(num_shards)).manifest.manifest.read_bytes())["parts"]["num_rows"]
            print(
                f"{num_shards:9} {num_parts:9} {emitted['seconds']:6.1f} s {emitted['cpu']:6.1f} s {emitted['gigabytes']:5.2f} GB "
                f"{batch['seconds']:10.1f} s {batch['cpu']:6.1f} s {batch['gigabytes']:5.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
