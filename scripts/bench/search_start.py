"""What a search does before it reads its first token, on a simulated catalog: seconds, and how often things are worked out.

    python scripts/bench/search_start.py [--sources 512] [--shards 100000] [--profile]

The catalog is a real file whose shards do not exist: nothing that comes before counting may open one, but for the look into the target's
halves, which is left out. The limit is what pyarrow takes to read the file. Columns: passes over all rows of the catalog, look-ups of a
source's rows, and how often the constraints are made.
`search` at the end is the command itself, up to the moment it asks for the first sequence.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Never, TypeVar

import pyarrow.parquet as pq
import yaml

import train.search.plan as planning
from fastmix_data.atomic_files import write_json
from fastmix_data.recipe.load import load_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow, load_catalog
from fastmix_data.shards.sequences import SequenceReader
from fastmix_data.shards.table_rows import TableRows
from train.proxy.engine import process_group
from train.search.plan import check_search, plan_search
from train.search.search import search
from train.target.target import Target

Result = TypeVar("Result")
VOCABULARY, BLOCK, BLOCKS_PER_SHARD = 8192, 2048, 256
TOKENS_PER_SHARD = BLOCK * BLOCKS_PER_SHARD


def write_catalog(root: Path, *, num_sources: int, num_shards: int) -> list[str]:
    """Write `catalog.parquet`: a held-out shard for each source, the rest training shards spread evenly; returns the sources' names."""
    names = [f"source{number:03d}" for number in range(num_sources)]

    def row(name: str, split: str, number: int) -> ShardRow:
        path = f"shards/{name}/{split}-000000-{number:05d}.tar"
        count = TOKENS_PER_SHARD
        return ShardRow(
            name,
            split,
            path,
            BLOCKS_PER_SHARD,
            count,
            count,
            count,
            900,
            "<u2",
            False,
            2 * count,
            sha256(path.encode()).hexdigest(),
        )

    shares = [(num_shards - num_sources) * edge // num_sources for edge in range(num_sources + 1)]
    rows = [row(name, "train", number) for k, name in enumerate(names) for number in range(shares[k + 1] - shares[k])]
    rows += [row(name, "valid", 0) for name in names]
    Catalog(root, CatalogInfo(BLOCK, VOCABULARY, 0, "", sources=tuple(names)), rows).save(root / "catalog.parquet")
    return names


def write_recipe(path: Path, names: list[str], *, num_shards: int) -> Path:
    """The default search with floors, a group and epoch caps, for a production run of one epoch."""
    content = {
        "workdir": "run",
        "tokenizer": {"bytes": True},
        "sources": {name: {"files": "none"} for name in names},
        "target": {"sources": dict.fromkeys(names[:8], 1.0)},
        "training": {"token_budget": "100M"},
        "search": {"constraints": {"floor": 1e-4, "groups": {"first": {"sources": names[: len(names) // 4], "max": 0.5}}}},
        "emit": {"token_budget": num_shards * TOKENS_PER_SHARD},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


class Counted:
    """Counts passes over a catalog's rows, look-ups of a source's rows and constraints made."""

    def __init__(self) -> None:
        """Start at 0, and watch."""
        self.counts: Counter[str] = Counter()
        for owner, name in ((Catalog, "shards"), (SequenceReader, "__init__"), (planning, "constraints_of")):
            setattr(owner, name, self._counting(name, getattr(owner, name)))

    def _counting(self, name: str, work: Callable[..., Result]) -> Callable[..., Result]:
        def counted(*arguments: Any, **options: Any) -> Result:
            self.counts[name] += 1
            return work(*arguments, **options)

        return counted

    def watch(self, catalog: Catalog) -> Catalog:
        """The same catalog, with rows that count passes over them."""
        counts = self.counts

        class Rows(TableRows[ShardRow]):
            def __iter__(self) -> Iterator[ShardRow]:
                counts["passes"] += 1
                return super().__iter__()

        catalog.rows = Rows(catalog.rows.table, ShardRow)
        return catalog


class _FirstReadError(Exception):
    """The search asked for the first sequence."""


def _read(*_: object) -> Never:
    raise _FirstReadError


class Table:
    """Prints a line for each piece of work."""

    def __init__(self, counted: Counted, limit: float) -> None:
        """Print the head; ratios are to `limit` seconds."""
        self._counted, self._limit = counted, limit
        print(
            "| step | s | CPU s | x reading the file | passes over rows | look-ups of a source | readers | constraints |\n"
            + "|---" * 8
            + "|"
        )

    def line(self, name: str, work: Callable[[], Result]) -> Result:
        """Do the work and print its line."""
        self._counted.counts.clear()
        started, cpu_before = time.perf_counter(), time.process_time()
        result = work()
        taken, cpu, counts = time.perf_counter() - started, time.process_time() - cpu_before, self._counted.counts
        numbers = " | ".join(str(counts[key]) for key in ("passes", "shards", "__init__", "constraints_of"))
        print(f"| {name} | {taken:.2f} | {cpu:.2f} | {cpu / self._limit:.1f} | {numbers} |", flush=True)
        return result


def measure(folder: Path, *, num_sources: int, num_shards: int) -> None:
    """Print the table."""
    names = write_catalog(folder / "run", num_sources=num_sources, num_shards=num_shards)
    path = write_recipe(folder / "recipe.yaml", names, num_shards=num_shards)
    catalog_path = folder / "run" / "catalog.parquet"
    limit = min(_cpu_seconds(lambda: pq.read_table(catalog_path)) for _ in range(5))
    print(
        f"{num_sources} sources, {num_shards} shards; {limit * 1e3:.0f} ms for pyarrow to read {catalog_path.stat().st_size >> 10} KiB\n"
    )
    counted = Counted()
    setattr(SequenceReader, "count_loss_tokens", lambda *_, at_most: at_most)  # noqa: B010
    table = Table(counted, limit)
    recipe = table.line("load_recipe", lambda: load_recipe(path))
    catalog = counted.watch(table.line("load_catalog", lambda: load_catalog(catalog_path)))
    plan = table.line("plan_search", lambda: plan_search(recipe, catalog))
    table.line("importing the model, its configuration", lambda: plan.proxy.config)
    table.line("check_search", lambda: check_search(plan, num_ranks=1))
    table.line("identity of the search", lambda: plan.identity)
    table.line("identities of five seeds", lambda: [one.identity for one in plan.of_seeds(5)])
    table.line("plan of the run along the scores", lambda: plan.main)
    table.line("target", lambda: Target.of_plan(plan.proxy, plan.target, plan.search, num_ranks=1))
    table.line("reader of the training data", plan.proxy.training_data)
    table.line("saving the sections", lambda: write_json(folder / "sections.json", plan.sections.model_dump(mode="json")))

    setattr(SequenceReader, "read", _read)  # noqa: B010

    def all_of_it() -> None:
        try:
            search(plan_search(load_recipe(path), counted.watch(load_catalog(catalog_path))), quiet=True)
        except _FirstReadError:
            return
        raise AssertionError("the search read nothing")

    with process_group(rank=0, world_size=1):
        table.line("**`fastmix search`**, up to its first read", all_of_it)


def _cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def main() -> None:
    """Print the table, and with --profile where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=512)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastmix-bench-") as name:
        (Path(name) / "run").mkdir()
        profile = cProfile.Profile()
        if options.profile:
            profile.enable()
        measure(Path(name), num_sources=options.sources, num_shards=options.shards)
        if options.profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)


if __name__ == "__main__":
    main()
