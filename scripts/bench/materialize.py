"""`fastmix materialize` against `cp` of the same bytes, one after the other in every round; ratios are medians over the rounds' pairs.

The shards are in the page cache, as after `emit` on a machine that has just made them, or for a copy to start from. `cp` leaves its bytes
to be written later, materializing does not end before they are on disk: so `cp` is timed both as it is, and with an fsync of each file.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loader import write_corpus

from fastmix_data.machine import Workers
from pipelines.export.run import export


def copy(source: Path, target: Path, *, sync: bool) -> None:
    """`cp -r`, and with `sync` an fsync of each file."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in target.rglob("*.tar") if sync else ():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def cpu_seconds() -> float:
    """Of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def seconds(work: Callable[[Path], object], target: Path) -> tuple[float, float]:
    """Time and CPU time of a piece of work; what it wrote is deleted, and nothing is left to be written while others are timed."""
    started, cpu = time.perf_counter(), cpu_seconds()
    work(target)
    taken = time.perf_counter() - started, cpu_seconds() - cpu
    shutil.rmtree(target)
    os.sync()
    return taken


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400_000_000)
    parser.add_argument("--block-tokens", type=int, default=2048)
    parser.add_argument("--shard-bytes", type=int, default=64 << 20)
    parser.add_argument("--max-shard-bytes", type=int, default=256 << 20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to write the shards")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastmix-bench-", dir=options.directory) as folder:
        root = Path(folder)
        catalog = write_corpus(
            root, num_tokens=options.tokens, block_tokens=options.block_tokens, shard_bytes=options.shard_bytes
        )
        num_bytes = sum(row.bytes for row in catalog.rows)

        def materialize(target: Path, *, check_shards: bool) -> None:
            workers = Workers(options.workers, quiet=True)
            export(
                root / "manifest",
                to="shards",
                directory=target,
                max_file_bytes=options.max_shard_bytes,
                check_shards=check_shards,
                workers=workers,
            )

        works: dict[str, Callable[[Path], object]] = {
            "cp": lambda target: copy(root / "shards", target, sync=False),
            "cp, and fsync": lambda target: copy(root / "shards", target, sync=True),
            "materialize": lambda target: materialize(target, check_shards=True),
            "materialize, shards' sha256 not checked first": lambda target: materialize(target, check_shards=False),
        }
        taken: dict[str, list[float]] = {name: [] for name in works}
        cpu: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(options.rounds):
            for name, work in works.items():
                wall, used = seconds(work, root / "written")
                taken[name].append(wall)
                cpu[name].append(used)
    print(f"{num_bytes / 1e9:.2f} GB in {len(catalog.rows)} shards, {options.workers} workers, {options.rounds} rounds\n")
    print(f"{'':46} {'MB/s':>7} {'x cp':>6} {'lowest':>7} {'x cp and fsync':>15} {'lowest':>7} {'CPU s/GB':>9}")
    for name, values in taken.items():
        row = f"{name:46} {num_bytes / 1e6 / statistics.median(values):7.0f}"
        for peer, width in (("cp", 6), ("cp, and fsync", 15)):
            ratios = [other / value for other, value in zip(taken[peer], values, strict=True)]
            row += f" {statistics.median(ratios):{width}.2f} {min(ratios):7.2f}"
        print(f"{row} {statistics.median(cpu[name]) / (num_bytes / 1e9):9.2f}")


if __name__ == "__main__":
    main()
