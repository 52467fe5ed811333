"""Preprocess against datatrove on the same JSONL.zst and tokenizer, and against the raw rate of the encoder.

    FASTMIX_CORPUS=path python scripts/bench/preprocess.py --datatrove-python OTHER_ENV/bin/python

datatrove is not a dependency: make an environment for it (`python -m venv ENV; ENV/bin/pip install "datatrove==0.10.*" tokenizers
zstandard orjson`) and name its interpreter. Without one, only the share of the raw rate is measured. Every figure is the median of runs
that take turns, each in a fresh process; times are those of the call, without the start of the interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import zstandard

from fastmix_data.tokens.tokenizer import train_tokenizer

_TEXT_FILES = ("*/train-*.jsonl", "*/train-*.jsonl.gz", "*/train-*.jsonl.zst", "*/train-*.parquet", "*/train/*.txt")
_NUM_FILES = 8
_TOKENIZER_SAMPLE_BYTES = 20_000_000

_FASTMIX = """
import sys, time
from pathlib import Path
from fastmix_data.recipe.load import load_recipe
from fastmix_data.machine import Workers
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess
if __name__ == "__main__":
    recipe = load_recipe(Path(sys.argv[1]))
    started = time.perf_counter()
    catalog = preprocess(plan_preprocess(recipe), workers=Workers(int(sys.argv[2]), quiet=True)).catalog
    print(sum(row.num_tokens for row in catalog.rows), time.perf_counter() - started)
"""

_RAW = """
import multiprocessing, os, sys, time
os.environ["RAYON_NUM_THREADS"] = "1"
import orjson, zstandard
def encode(tokenizer, paths, barrier, results):
    import fastokens
    encoder = fastokens.Tokenizer.from_file(tokenizer)
    batches = []
    for path in paths:
        content = zstandard.ZstdDecompressor().stream_reader(open(path, "rb")).read()
        texts = [orjson.loads(line)["text"] for line in content.splitlines()]
        batches += [texts[start : start + 64] for start in range(0, len(texts), 64)]
    barrier.wait()
    started = time.perf_counter()
    count = 0
    for batch in batches:
        ids, offsets = encoder.encode_batch_flat(batch, add_special_tokens=False)
        count += len(ids) // 4 + len(batch)
    results.put((count, time.perf_counter() - started))
if __name__ == "__main__":
    tokenizer, workers, *paths = sys.argv[1:]
    workers = int(workers)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=encode, args=(tokenizer, paths[i::workers], barrier, results)) for i in range(workers)]
    [process.start() for process in processes]
    done = [results.get() for _ in processes]
    [process.join() for process in processes]
    print(sum(count for count, _ in done), max(seconds for _, seconds in done))
"""

_DATATROVE = """
import os, sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    tokenizer, workers, source, output = sys.argv[1:]
    executor = LocalPipelineExecutor(
        pipeline=[
            JsonlReader(source, glob_pattern="*.jsonl.zst", compression="zstd"),
            DocumentTokenizer(output + "/tokens", tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
        ],
        tasks=len(os.listdir(source)), workers=int(workers), logging_dir=output + "/logs",
    )
    started = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - started
    size = sum(os.path.getsize(os.path.join(output, "tokens", name)) for name in os.listdir(output + "/tokens") if name.endswith(".ds"))
    print(size // 2, seconds)
"""


def corpus_texts(corpus: Path) -> list[str]:
    """Texts of every training document of the corpus, shuffled with a fixed seed."""
    import gzip

    import pyarrow.parquet as pq

    texts: list[str] = []
    for pattern in _TEXT_FILES:
        for path in sorted(corpus.glob(pattern)):
            if path.suffix == ".txt":
                texts.append(path.read_text(errors="replace"))
                continue
            if path.suffix == ".parquet":
                texts += pq.read_table(path).column("text").to_pylist()
                continue
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            elif path.suffix == ".zst":
                content = zstandard.ZstdDecompressor().stream_reader(content).read()
            texts += [orjson.loads(line)["text"] for line in content.splitlines()]
    random.Random(0).shuffle(texts)
    return texts


def write_input(folder: Path, texts: list[str], *, copies: int) -> list[Path]:
    """Write the documents `copies` times over equal files."""
    (folder / "input").mkdir()
    paths = []
    for number in range(_NUM_FILES):
        lines = [orjson.dumps({"id": index, "text": text}) for index, text in enumerate(texts[number::_NUM_FILES])] * copies
        paths.append(folder / "input" / f"{number:02d}.jsonl.zst")
        paths[-1].write_bytes(zstandard.compress(b"\n".join(lines) + b"\n"))
    return paths


def run(program: str, *arguments: str, python: str = sys.executable, folder: Path) -> tuple[int, float]:
    """Run a measured program in a process of its own; (tokens, seconds)."""
    path = folder / "program.py"
    path.write_text(program)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, str(path), *arguments], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    if done.returncode:
        sys.exit(f"the measured program failed:\n{done.stderr[-3000:]}")
    tokens, seconds = done.stdout.split()[-2:]
    return int(tokens), float(seconds)


def write_recipe(folder: Path, name: str) -> Path:
    """A recipe that does as little as datatrove: one source, nothing trained."""
    recipe = {
        "workdir": f"run-{name}",
        "tokenizer": {"file": "tokenizer.json"},
        "sources": {"corpus": {"files": "input/*.jsonl.zst"}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def measure(
    folder: Path, *, repeats: int, workers: int, datatrove_python: str | None, paths: list[Path]
) -> dict[str, list[float]]:
    """Tokens per second of each program in each round."""
    rates: dict[str, list[float]] = {"raw encoder": [], "fastmix preprocess": []}
    tokenizer = str(folder / "tokenizer.json")
    for number in range(repeats):
        recipe = write_recipe(folder, str(number))
        measured = {
            "raw encoder": run(_RAW, tokenizer, str(workers), *map(str, paths), folder=folder),
            "fastmix preprocess": run(_FASTMIX, str(recipe), str(workers), folder=folder),
        }
        if datatrove_python is not None:
            arguments = (tokenizer, str(workers), str(folder / "input"), str(folder / f"datatrove-{number}"))
            measured["datatrove"] = run(_DATATROVE, *arguments, python=datatrove_python, folder=folder)
        counts = {tokens for tokens, _ in measured.values()}
        if len(counts) > 1:
            print(f"note: token counts differ: { {name: tokens for name, (tokens, _) in measured.items()} }", file=sys.stderr)
        for name, (tokens, seconds) in measured.items():
            rates.setdefault(name, []).append(tokens / seconds)
            print(f"round {number + 1}: {name}: {tokens} tokens in {seconds:.2f} s", file=sys.stderr)
    return rates


def print_table(rates: dict[str, list[float]]) -> None:
    """Medians, and medians of the ratios within rounds."""
    ours = rates["fastmix preprocess"]
    print("| program | tokens/s | fastmix is |\n|---|---:|---:|")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
        print(f"| {name} | {statistics.median(values) / 1e6:.2f} M | {ratio:.2f}x |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=os.environ.get("FASTMIX_CORPUS"), help="folder of the corpus")
    parser.add_argument("--copies", type=int, default=3, help="how often the documents are repeated (default 3)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--datatrove-python", help="interpreter of an environment with datatrove==0.10.*")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder when not given")
    arguments = parser.parse_args()
    if arguments.corpus is None:
        sys.exit("name the corpus with --corpus or FASTMIX_CORPUS")
    if arguments.datatrove_python is None:
        print('no --datatrove-python: `pip install "datatrove==0.10.*"` in an environment of its own to compare', file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        texts = corpus_texts(arguments.corpus)
        paths = write_input(folder, texts, copies=arguments.copies)
        size = sum(len(text.encode()) for text in texts) * arguments.copies
        sample = "".join(texts)[:_TOKENIZER_SAMPLE_BYTES]
        (folder / "tokenizer.json").write_text(
            train_tokenizer([sample[start : start + 10_000] for start in range(0, len(sample), 10_000)], vocab_size=8192),
            encoding="utf-8",
        )
        print(
            f"{len(texts) * arguments.copies} documents, {size / 1e6:.0f} MB of text, {arguments.workers} workers",
            file=sys.stderr,
        )
        print_table(
            measure(
                folder,
                repeats=arguments.repeats,
                workers=arguments.workers,
                datatrove_python=arguments.datatrove_python,
                paths=paths,
            )
        )


if __name__ == "__main__":
    main()
