"""What a document outside a sample costs: preprocessing a hundredth of a corpus against all of it, on one worker.

    FASTMIX_CORPUS=path python scripts/bench/sample.py

The same texts as plain and as compressed JSON Lines, once and six times over: the difference is free of the seconds that a run takes to
start. Seconds are those of processors, of all processes of a run. Medians of runs that take turns, and of ratios within a turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import zstandard
from preprocess import corpus_texts

from fastmix_data.tokens.tokenizer import train_tokenizer

_NUM_FILES, _COPIES, _NUM_TURNS, _SAMPLED = 4, 6, 3, 0.01
_PREPROCESS = """
import os, sys
from pathlib import Path
from fastmix_data.recipe.load import load_recipe
from fastmix_data.machine import Workers
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess
if __name__ == "__main__":
    recipe = load_recipe(Path(sys.argv[1]), sys.argv[2:])
    catalog = preprocess(plan_preprocess(recipe), workers=Workers(1, quiet=True)).catalog
    print(catalog.num_tokens("texts"), sum(os.times()[:4]))
"""


def preprocess_once(folder: Path, *changes: str) -> tuple[int, float]:
    """Training tokens and processor seconds of one run into a new workdir."""
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        command = [sys.executable, "-c", _PREPROCESS, str(folder / "recipe.yaml"), f"workdir={workdir}/run", *changes]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(printed[0]), float(printed[1])


def write_texts(folder: Path, texts: list[str], *, copies: int, compressed: bool) -> None:
    """A recipe and its files."""
    for number in range(_NUM_FILES):
        lines = b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts[number::_NUM_FILES]) * copies
        path = folder / f"{number}.jsonl{'.zst' if compressed else ''}"
        path.write_bytes(zstandard.compress(lines) if compressed else lines)
    recipe = {"tokenizer": {"file": "../tokenizer.json"}, "sources": {"texts": {"files": "*.jsonl*"}}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))


def measure(root: Path, texts: list[str], *, compressed: bool) -> None:
    """Print the rate of all and of a sample in one format."""
    folders = [root / f"{compressed}-{copies}" for copies in (1, _COPIES)]
    for folder, copies in zip(folders, (1, _COPIES), strict=True):
        folder.mkdir()
        write_texts(folder, texts, copies=copies, compressed=compressed)
    num_bytes = sum(len(text.encode()) for text in texts) * (_COPIES - 1)
    whole, sample = [], []
    for _ in range(_NUM_TURNS):
        (few, start), (many, end) = (preprocess_once(folder) for folder in folders)
        whole.append(end - start)
        sizes = [f"shards.sample={round(_SAMPLED * num_tokens)}" for num_tokens in (few, many)]
        (_, start), (_, end) = (preprocess_once(folder, size) for folder, size in zip(folders, sizes, strict=True))
        sample.append(end - start)
    ratio = statistics.median(one / other for one, other in zip(whole, sample, strict=True))
    rates = [f"{num_bytes / statistics.median(seconds) / 1e6:.0f} MB/s" for seconds in (whole, sample)]
    kind = "jsonl.zst" if compressed else "jsonl"
    print(
        f"{kind}: {num_bytes / 1e6:.0f} MB of text, all of it at {rates[0]}, a sample of {_SAMPLED:.0%} at {rates[1]}: {ratio:.1f}x"
    )


def main() -> None:
    """Measure both formats."""
    texts = corpus_texts(Path(os.environ["FASTMIX_CORPUS"]))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "tokenizer.json").write_text(train_tokenizer(iter(texts[: len(texts) // 4]), vocab_size=32_000))
        for compressed in (False, True):
            measure(root, texts, compressed=compressed)


if __name__ == "__main__":
    main()
