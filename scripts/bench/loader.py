"""Random sequences out of strided shards against sequential `webdataset` reading of the same shards.

All readers run one after another in every round, over files that are in the page cache; ratios are medians over the rounds' pairs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import webdataset as wds

from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.shards.sequences import SequenceReader
from fastmix_data.shards.shard_format import ShardLayout, encode_shard, write_shard

NUM_SOURCES = 4
BATCH = 64
REFERENCE = "webdataset, sequential blocks"
Reader = Callable[[], int]


def write_corpus(root: Path, *, num_tokens: int, block_tokens: int, shard_bytes: int) -> Catalog:
    """Shards of random tokens, uint16, with a manifest of one epoch."""
    layout = ShardLayout(block_tokens, np.dtype("<u2"))
    num_blocks = min(layout.max_blocks(shard_bytes), max(1, num_tokens // NUM_SOURCES // block_tokens))
    rng = np.random.default_rng(0)
    rows = []
    for number in range(max(NUM_SOURCES, num_tokens // (num_blocks * block_tokens))):
        source = f"source{number % NUM_SOURCES}"
        tokens = rng.integers(0, 1 << 16, num_blocks * block_tokens + 1, np.uint16)
        buffer = encode_shard(tokens, layout=layout, key_prefix=f"{source}-train-{number:06d}-", num_blocks=num_blocks)
        path = f"shards/{source}/train-{number:06d}.tar"
        written = write_shard(root / path, buffer, layout=layout)
        size = num_blocks * block_tokens
        rows.append(
            ShardRow(source, "train", path, num_blocks, size, size, size, 1, "<u2", False, written.num_bytes, written.sha256)
        )
    info = CatalogInfo(block_tokens, 1 << 16, 0, "", sources=tuple(f"source{number}" for number in range(NUM_SOURCES)))
    catalog = Catalog(root, info, rows)
    weights = catalog.num_tokens_K() / catalog.num_tokens_K().sum()
    mixture = Mixture(weights=dict(zip(catalog.sources, weights.tolist(), strict=True)))
    emit = EmitSection(token_budget=int(catalog.num_tokens_K().sum()), max_epochs=1)
    emit_manifest(catalog, mixture, emit=emit, directory=root / "manifest")
    return catalog


def read_webdataset(catalog: Catalog) -> int:
    """Every block once, in file order, decoded to arrays."""
    urls = [str(catalog.root / row.path) for row in catalog.rows]
    return sum(len(sample["tokens.npy"]) - 1 for sample in wds.WebDataset(urls, shardshuffle=False).decode())


def read_loop(catalog: Catalog, *, sequence_length: int) -> int:
    """Random sequences by a plain Python loop over strided views, as many tokens as the corpus has."""
    shards = [catalog.open(row).tokens_NT for row in catalog.rows]
    per_block = catalog.info.block_tokens // sequence_length
    num_sequences = sum(len(shard) for shard in shards) * per_block
    rng = np.random.default_rng(1)
    shard_N = rng.integers(0, len(shards), num_sequences).tolist()
    number_N = rng.integers(0, min(len(shard) for shard in shards) * per_block, num_sequences).tolist()
    batch_BS = np.empty((BATCH, sequence_length + 1), np.uint16)
    for row, (shard, number) in enumerate(zip(shard_N, number_N, strict=True)):
        block, within = divmod(number, per_block)
        batch_BS[row % BATCH] = shards[shard][block, within * sequence_length : (within + 1) * sequence_length + 1]
    return num_sequences * sequence_length


def read_sequences(catalog: Catalog, *, sequence_length: int) -> int:
    """Random batches of the search's reader: tokens and which labels carry loss."""
    reader = SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=sequence_length)
    rng = np.random.default_rng(1)
    source_N = rng.integers(0, NUM_SOURCES, int(reader.num_sequences_K.sum()))
    sequence_N = rng.integers(0, reader.num_sequences_K[source_N])
    for start in range(0, len(source_N), BATCH):
        reader.read(source_N[start : start + BATCH], sequence_N[start : start + BATCH])
    return len(source_N) * sequence_length


def read_manifest(catalog: Catalog, *, sequence_length: int) -> int:
    """The production loader: batches of int64 tensors, shuffled over the whole corpus, with labels."""
    dataset = ManifestDataset(catalog.root / "manifest", sequence_length=sequence_length, batch_size=BATCH)
    return sum(item["tokens"].numel() for item in dataset)


def copy_bytes(catalog: Catalog) -> int:
    """The page cache's limit: all bytes of the shards copied into one buffer, counted as the tokens they hold."""
    buffer = bytearray(1 << 20)
    for row in catalog.rows:
        with (catalog.root / row.path).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return sum(row.num_tokens for row in catalog.rows)


def measure(readers: dict[str, Reader], *, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each reader in each round."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            started = time.perf_counter()
            num_tokens = read()
            rates[name].append(num_tokens / (time.perf_counter() - started))
    return rates


@contextmanager
def corpus_root(given: Path | None) -> Iterator[Path]:
    """A folder for the shards, removed afterwards unless it was given."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="fastmix-bench-") as folder:
        yield Path(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64_000_000)
    parser.add_argument("--block-tokens", type=int, default=2048)
    parser.add_argument("--shard-bytes", type=int, default=16 << 20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to write the shards")
    options = parser.parse_args()
    with corpus_root(options.directory) as root:
        catalog = write_corpus(
            root, num_tokens=options.tokens, block_tokens=options.block_tokens, shard_bytes=options.shard_bytes
        )
        readers: dict[str, Reader] = {REFERENCE: partial(read_webdataset, catalog)}
        for length in (512, options.block_tokens):
            readers[f"loop over strided views, random {length}"] = partial(read_loop, catalog, sequence_length=length)
            readers[f"SequenceReader, random {length}"] = partial(read_sequences, catalog, sequence_length=length)
            readers[f"ManifestDataset, random {length}, int64"] = partial(read_manifest, catalog, sequence_length=length)
        readers["page cache to memory, sequential bytes"] = partial(copy_bytes, catalog)
        rates = measure(readers, rounds=options.rounds)
    print(
        f"{options.tokens} tokens, blocks of {options.block_tokens} uint16, {len(catalog.rows)} shards, {options.rounds} rounds\n"
    )
    print(f"{'reader':44} {'M tokens/s':>11} {'x webdataset':>13} {'lowest':>8}")
    for name, values in rates.items():
        ratios = [value / reference for value, reference in zip(values, rates[REFERENCE], strict=True)]
        print(f"{name:44} {statistics.median(values) / 1e6:11.1f} {statistics.median(ratios):13.1f} {min(ratios):8.1f}")


if __name__ == "__main__":
    main()
