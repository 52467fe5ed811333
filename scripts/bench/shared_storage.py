"""What training reads from S3: bytes for each byte trained on, requests, and time, by the locality window.

A local S3 server (moto, in a process of its own) answers every request after a delay. Runs draw batches from four sources as a search does,
and read them through an empty cache; nothing is computed. "ahead" reads eight batches at once, as a loop that prefetches does. Where
sequences are fetched one by one, which is the same at every step, a run is cut off after `--steps` steps.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from fastmix_data.recipe.training import TrainingSection
from fastmix_data.remote.shard_store import ShardStore
from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.shards.sequences import SequenceReader
from fastmix_data.shards.shard_format import ShardLayout, encode_shard, write_shard
from train.proxy.training import window_read_here

NUM_SOURCES, LENGTH, BATCH, AHEAD = 4, 128, 32, 8
WEIGHTS_K = np.array([0.4, 0.3, 0.2, 0.1])
WINDOWS = (0, 64, 1024, 16384)


def make_catalog(root: Path, *, tokens: int, block_tokens: int) -> Catalog:
    """Four sources of equal size, in shards of about a megabyte."""
    layout, rows = ShardLayout(block_tokens, np.dtype("<u2")), []
    rng, blocks = np.random.default_rng(0), layout.max_blocks(1 << 20)
    for source in range(NUM_SOURCES):
        for number in range(-(-tokens // (NUM_SOURCES * blocks * block_tokens))):
            run = rng.integers(0, 50_000, blocks * block_tokens + 1).astype(np.uint16)
            buffer = encode_shard(run, layout=layout, key_prefix=f"s{source}-{number}-", num_blocks=blocks)
            path = f"shards/s{source}/train-{number:06d}-00000.tar"
            written = write_shard(root / path, buffer, layout=layout)
            size = blocks * block_tokens
            row = (f"s{source}", "train", path, blocks, size, size, size, 1, "<u2", False, written.num_bytes, written.sha256)
            rows.append(ShardRow(*row))
    info = CatalogInfo(block_tokens, 50_000, 0, "0" * 64, sources=tuple(f"s{number}" for number in range(NUM_SOURCES)))
    return Catalog(root, info, rows)


def serve(root: str, seconds: float, pipe: Connection) -> None:
    """Run the server until the pipe is closed."""
    from tests.local_s3 import local_s3

    with local_s3() as server:
        server.upload(Path(root) / "shards", "corpora", "bench")
        server.seconds = seconds
        pipe.send(server.environment)
        pipe.recv()


def read(catalog: Catalog, cache: Path, *, window: int, tokens: int, steps: int, ahead: int) -> dict[str, float]:
    """One run: what it fetched for each byte that it trained on, and for each step."""
    stored = catalog.read_from(ShardStore("s3://corpora/bench", str(cache), 4 << 30))
    training = TrainingSection(token_budget=tokens, sequence_length=LENGTH, global_batch=BATCH, locality_window=window)
    together = window_read_here(training, num_sources=NUM_SOURCES)
    reader = SequenceReader(stored, sources=stored.sources, split="train", sequence_length=LENGTH, window=together)
    sampler = MixtureSampler(
        reader.num_sequences_K, sources=stored.sources, global_batch=BATCH, seed=0, fingerprint="bench", window=window
    )
    assert stored.store is not None
    num_steps, started = training.num_steps if together > 1 else min(steps, training.num_steps), time.monotonic()
    with ThreadPoolExecutor(ahead) as threads:
        plans = (sampler.next(WEIGHTS_K) for _ in range(num_steps))
        for _ in threads.map(lambda plan: reader.read(plan.source_B, plan.sequence_B), plans):
            pass
    seconds, traffic = time.monotonic() - started, stored.store.opened.objects.traffic
    requests = traffic.num_reads + traffic.num_looks
    return {
        "together": together,
        "bytes": traffic.num_bytes / (num_steps * BATCH * LENGTH * 2),
        "requests": requests / num_steps,
        "rate": requests / seconds,
        "ms": 1000 * seconds / num_steps,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ms", type=float, default=20.0, help="delay of every request")
    parser.add_argument("--steps", type=int, default=73, help="of a run that fetches sequences one by one")
    parser.add_argument("--block-tokens", type=int, default=8192)
    parser.add_argument("--corpus", type=int, default=32_000_000, help="tokens that there are")
    parser.add_argument("--tokens", type=int, nargs="+", default=[300_000, 4_200_000], help="tokens that runs train on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        catalog = make_catalog(Path(folder) / "run", tokens=options.corpus, block_tokens=options.block_tokens)
        here, there = mp.get_context("spawn").Pipe()
        server = mp.get_context("spawn").Process(target=serve, args=(str(catalog.root), options.ms / 1000, there))
        server.start()
        os.environ |= here.recv()
        print(
            f"{options.ms:g} ms a request, {BATCH} sequences of {LENGTH} tokens a step, blocks of {options.block_tokens} tokens (uint16)\n"
        )
        print("| tokens | window | fetched together | fetched / trained | requests a step | requests/s | ms a step | ms, ahead |")
        print("|---|---|---|---|---|---|---|---|")
        for tokens in options.tokens:
            for window in WINDOWS:
                alone, ahead = (
                    read(
                        catalog,
                        Path(folder) / f"cache-{tokens}-{window}-{at_once}",
                        window=window,
                        tokens=tokens,
                        steps=options.steps,
                        ahead=at_once,
                    )
                    for at_once in (1, AHEAD)
                )
                figures = f"{alone['bytes']:.3f} | {alone['requests']:.2f} | {alone['rate']:.0f}"
                print(
                    f"| {tokens:,} | {window} | {alone['together']} | {figures} | {alone['ms']:.1f} | {ahead['ms']:.1f} |",
                    flush=True,
                )
        here.send(None)
        server.join()


if __name__ == "__main__":
    main()
