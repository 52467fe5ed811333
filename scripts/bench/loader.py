"""Production loaders over the same tokens, each in a process of its own: rates, ratios and how they compare with a proxy's step.

All deliver shuffled batches of int64 tokens and labels without worker processes, out of the page cache. They take turns in every round,
one at a time; ratios are medians over the rounds' pairs. litdata and MosaicML streaming run in the environments that
`scripts/test_exports.sh litdata mds` makes, under FASTMIX_EXPORT_ENVIRONMENTS; without one a reader is left out, which is said.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.loader import ManifestDataset
from fastmix_data.loading.transformers_inputs import transformers_inputs
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.shards.shard_format import ShardLayout, encode_shard, write_shard

READERS = Path(__file__).parent / "loader_readers"
ROOT = Path(__file__).parents[2]
NUM_SOURCES = 4
VOCABULARY = 8192
OURS, MEMMAP, WEBDATASET = "ManifestDataset", "np.memmap as in nanoGPT", "webdataset + WebLoader"
PROXY = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 344}  # that of the README


@dataclass(frozen=True)
class Reader:
    """A script of `loader_readers`: the environment that runs it, None for ours, and arguments after root, length and batch."""

    name: str
    script: str
    environment: str | None = None
    arguments: tuple[str, ...] = ()


ALL = (
    Reader(OURS, "fastmix_manifest"),
    Reader("ManifestDataset, read_ahead=2", "fastmix_manifest", arguments=("2",)),
    Reader(MEMMAP, "numpy_memmap"),
    Reader("np.memmap, one copy and one widening", "numpy_memmap", arguments=("least",)),
    Reader(WEBDATASET, "webdataset_loader"),
    Reader("litdata, TokensLoader", "litdata_tokens", environment="litdata"),
    Reader("MosaicML streaming", "mosaic_streaming", environment="mds"),
)


def write_corpus(root: Path, *, num_tokens: int, block_tokens: int, shard_bytes: int) -> Catalog:
    """Shards of random tokens, uint16, with a manifest of one epoch, and the same tokens in one flat file."""
    layout = ShardLayout(block_tokens, np.dtype("<u2"))
    num_blocks = min(layout.max_blocks(shard_bytes), max(1, num_tokens // NUM_SOURCES // block_tokens))
    rng = np.random.default_rng(0)
    rows = []
    root.mkdir(parents=True, exist_ok=True)
    with (root / "flat.bin").open("wb") as flat:
        for number in range(max(NUM_SOURCES, num_tokens // (num_blocks * block_tokens))):
            source = f"source{number % NUM_SOURCES}"
            tokens = rng.integers(0, VOCABULARY, num_blocks * block_tokens + 1, np.uint16)
            buffer = encode_shard(tokens, layout=layout, key_prefix=f"{source}-train-{number:06d}-", num_blocks=num_blocks)
            path = f"shards/{source}/train-{number:06d}.tar"
            written = write_shard(root / path, buffer, layout=layout)
            flat.write(tokens[:-1].tobytes())
            size = num_blocks * block_tokens
            rows.append(
                ShardRow(source, "train", path, num_blocks, size, size, size, 1, "<u2", False, written.num_bytes, written.sha256)
            )
    info = CatalogInfo(block_tokens, VOCABULARY, 0, "", sources=tuple(f"source{number}" for number in range(NUM_SOURCES)))
    catalog = Catalog(root, info, rows)
    weights = catalog.num_tokens_K() / catalog.num_tokens_K().sum()
    mixture = Mixture(weights=dict(zip(catalog.sources, weights.tolist(), strict=True)))
    emit = EmitSection(token_budget=int(catalog.num_tokens_K().sum()), max_epochs=1)
    emit_manifest(catalog, mixture, emit=emit, directory=root / "manifest")
    return catalog


def python_of(reader: Reader) -> Path | None:
    """The interpreter that has the reader's packages, if there is one."""
    if reader.environment is None:
        return Path(sys.executable)
    folder = Path(os.environ.get("FASTMIX_EXPORT_ENVIRONMENTS", ROOT / ".venv-exports"))
    python = folder / reader.environment / "bin" / "python"
    return python if python.exists() else None


@contextmanager
def started(reader: Reader, python: Path, *, root: Path, length: int, batch: int) -> Iterator[subprocess.Popen[str]]:
    """A reader that has written its own format and made one pass."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if reader.environment is None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    else:
        environment.pop("PYTHONPATH", None)
    command = [str(python), str(READERS / f"{reader.script}.py"), str(root), str(length), str(batch), *reader.arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()).strip() != "ready":
            if not line:
                raise SystemExit(f"{reader.name} has failed: {' '.join(command)}")
        yield process
    finally:
        # The end of its input ends it; killed, MosaicML's would leave its shared memory behind.
        process.communicate()


def rate_of_a_pass(process: subprocess.Popen[str]) -> float:
    """Tokens per second of one more pass."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    while not (line := process.stdout.readline()).startswith("{"):
        if not line:
            raise SystemExit("a reader has ended")
    return float(json.loads(line)["rate"])


def measure(root: Path, *, length: int, batch: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Rates of each reader in each round; fewer rounds where they take too long."""
    with ExitStack() as stack:
        processes = {}
        for reader in ALL:
            python = python_of(reader)
            if python is None:
                print(f"{reader.name} is left out: there is no environment; bash scripts/test_exports.sh {reader.environment}")
                continue
            if reader.name == WEBDATASET and length != ManifestDataset(root / "manifest").manifest.block_tokens:
                continue  # it can only read what lies in a sample
            processes[reader.name] = stack.enter_context(started(reader, python, root=root, length=length, batch=batch))
        rates: dict[str, list[float]] = {name: [] for name in processes}
        begun = time.perf_counter()
        for done in range(rounds):
            if done and time.perf_counter() - begun > seconds:
                break
            for name, process in processes.items():
                rates[name].append(rate_of_a_pass(process))
    return rates


def show(rates: dict[str, list[float]], *, length: int, batch: int) -> None:
    """The table of one length: ratios are ours over theirs."""
    num_rounds = len(rates[OURS])
    print(f"\nbatches of {batch} sequences of {length} tokens, {num_rounds} rounds\n")
    print(f"{'reader':40} {'M tokens/s':>11} {'ManifestDataset is':>19} {'least':>7} {'most':>7}")
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates[OURS], values, strict=True)]
        row = f"{name:40} {statistics.median(values) / 1e6:11.1f}"
        print(f"{row} {statistics.median(ratios):18.2f}x {min(ratios):6.2f}x {max(ratios):6.2f}x")


def share_of_a_step(root: Path, *, length: int = 128, batch: int = 32, steps: int = 12) -> float:
    """Median time to get a batch over the median time of a proxy's step on it, on this machine's device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=VOCABULARY, **PROXY)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    reading, stepping = [], []
    items = iter(ManifestDataset(root / "manifest", sequence_length=length, batch_size=batch))
    next(items)  # opens the manifest and plans
    for _ in range(steps):
        begun = time.perf_counter()
        item = next(items)
        read = time.perf_counter()
        model(**{name: values.to(device) for name, values in transformers_inputs(item).items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        reading.append(read - begun)
        stepping.append(time.perf_counter() - read)
    return statistics.median(reading) / statistics.median(stepping)


def wait_for_a_batch(root: Path, *, read_ahead: int, step_seconds: float = 0.02, steps: int = 60) -> float:
    """Median seconds that a loop without workers waits for a batch of 64 x 512, if its steps run elsewhere, as on a GPU."""
    dataset = ManifestDataset(root / "manifest", sequence_length=512, batch_size=64, read_ahead=read_ahead)
    items, waits = iter(dataset), []
    for _ in range(steps):
        begun = time.perf_counter()
        next(items)
        waits.append(time.perf_counter() - begun)
        time.sleep(step_seconds)
    return statistics.median(waits)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_000_000)
    parser.add_argument("--block-tokens", type=int, default=2048)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 512])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--shard-bytes", type=int, default=16 << 20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20, help="of measuring each length; no round begins after them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastmix-bench-") as folder:
        root = Path(folder)
        catalog = write_corpus(
            root, num_tokens=options.tokens, block_tokens=options.block_tokens, shard_bytes=options.shard_bytes
        )
        print(f"{options.tokens} tokens, blocks of {options.block_tokens} uint16, {len(catalog.rows)} shards")
        for length in options.lengths:
            rates = measure(root, length=length, batch=options.batch, rounds=options.rounds, seconds=options.seconds)
            show(rates, length=length, batch=options.batch)
        print(f"\na batch of 32 x 128 takes {share_of_a_step(root):.2%} of a proxy's step on it")
        ratios = [wait_for_a_batch(root, read_ahead=2) / wait_for_a_batch(root, read_ahead=0) for _ in range(5)]
        print(f"read_ahead=2 waits {statistics.median(ratios):.2f}x as long for a batch, with steps of 20 ms on another device")


if __name__ == "__main__":
    main()
