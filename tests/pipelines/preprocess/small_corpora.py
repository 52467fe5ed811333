"""Small corpora of every format, recipes that read them, and ways to look at what preprocessing made of them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fastmix_data.machine import Workers
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import PreprocessResult, preprocess

_PLAIN_WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "über", "1234", "streams", "return", "def", "self.x(", ")"]
_WORDS = [*_PLAIN_WORDS, "value;\n", "🤦🏽\u200d♀️", "नमस्ते", "zwölf"]


def texts(seed: str, count: int, length: int = 120) -> list[str]:
    """Documents that differ from one another and from those of another seed."""
    rng = random.Random(seed)
    return [f"{seed}-{number} " + " ".join(rng.choices(_WORDS, k=rng.randint(1, length))) for number in range(count)]


def json_lines(documents: Sequence[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def write_every_format(folder: Path) -> Path:
    """Every format: split by hash, with held-out files, and pairs as a target of their own; and the recipe for it."""
    (folder / "notes").mkdir(parents=True)
    (folder / "books.jsonl").write_bytes(json_lines(texts("books", 300)))
    (folder / "code.jsonl.zst").write_bytes(zstandard.compress(json_lines(texts("code", 200))))
    (folder / "code-valid.jsonl.gz").write_bytes(gzip.compress(json_lines(texts("code-valid", 40))))
    pq.write_table(pa.table({"body": texts("tables", 250)}), folder / "tables.parquet", row_group_size=60)
    for number, text in enumerate(texts("notes", 80)):
        (folder / "notes" / f"{number:03d}.txt").write_bytes(text.encode())
    pairs = [{"q": q, "a": a} for q, a in zip(texts("q", 60, 4), texts("a", 60, 4), strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    recipe = {
        "tokenizer": {"train": {"vocab_size": 400, "sample_bytes": 40_000}},
        "sources": {
            "books": {"files": "books.jsonl"},
            "code": {"files": "code.jsonl.zst", "valid_files": "code-valid.jsonl.gz"},
            "tables": {"files": "tables.parquet", "text": "body"},
            "notes": {"files": "notes"},
        },
        "shards": {"block_tokens": 64, "max_shard_bytes": 20_000, "max_partition_bytes": 20_000, "valid_fraction": 0.1},
        "target": {
            "sources": {"books": 1, "code": 2},
            "files": {"answers": {"files": "pairs.jsonl", "prompt": "q", "completion": "a", "separator": " -> "}},
        },
        "training": {"token_budget": "20k", "sequence_length": 64, "global_batch": 4},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


def run(recipe: Recipe, **options: Any) -> PreprocessResult:
    replace = options.pop("replace", False)
    return preprocess(plan_preprocess(recipe), workers=Workers(**{"quiet": True} | options), replace=replace)


def bytes_of(workdir: Path) -> dict[str, bytes]:
    """Content of everything in a workdir but the receipts, which hold times of modification."""
    files = [path for path in sorted(workdir.rglob("*")) if path.is_file() and path.parent.name != "receipts"]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def documents_of(workdir: Path) -> list[dict[str, Any]]:
    """Rows of the documents tables."""
    return [row for path in sorted((workdir / "documents").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def streams_of(catalog: Catalog) -> dict[str, tuple[Any, Any, dict[str, int]]]:
    """Tokens and mask of each (source, split, partition), shards put one after the other, and where each shard starts in them."""
    parts: dict[str, tuple[list[Any], list[Any], dict[str, int]]] = {}
    for row in catalog.rows:
        shard = catalog.open(row)
        tokens, masks, starts = parts.setdefault(row.path.rsplit("-", 1)[0], ([], [], {}))
        starts[row.path] = sum(map(len, tokens))
        tokens.append(shard.tokens_NT[:, :-1].ravel())
        masks.append(None if shard.loss_mask_NT is None else shard.loss_mask_NT[:, :-1].ravel())
    return {
        name: (np.concatenate(tokens), None if masks[0] is None else np.concatenate(masks), starts)
        for name, (tokens, masks, starts) in parts.items()
    }


def text_at(folder: Path, row: dict[str, Any]) -> tuple[str, ...]:
    """The text(s) that a row of the documents table points at, read without fastmix."""
    path = folder / row["file"]
    kind, _, number = row["locator"].partition(" ")
    if kind == "file":
        return (path.read_bytes().decode(),)
    if kind == "row":
        return (pq.read_table(path).column("body")[int(number)].as_py(),)
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor().stream_reader(content).read()
    elif path.suffix == ".gz":
        content = gzip.decompress(content)
    line = content[int(number) :].split(b"\n")[0] if kind == "byte" else content.split(b"\n")[int(number) - 1]
    record = json.loads(line)
    return (record["text"],) if "text" in record else (record["q"] + " -> ", record["a"])
