"""The benchmark corpus as a recipe: twelve sources, five targets, one workdir for all of them.

The corpus is a folder with `sources.json` and `sft/sources.json`, each naming sources with their train and valid files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from fastmix_data.machine import Workers
from fastmix_data.recipe.load import parse_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.target import TargetSection
from fastmix_data.shards.catalog import Catalog
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess

QA_SETS = ("arc_challenge", "piqa", "sciq", "hellaswag", "gsm8k", "strategyqa")
TARGETS = ("all", "literary", "books", "code", "qa")
PROXY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 172,
}


def target_sources(target: str, sources: list[str]) -> dict[str, float]:
    """Held-out splits that make up a target; `qa` has none, it is made of files that no source resembles."""
    return {
        "all": {name: 1.0 for name in sources if name != "junk"},
        "literary": {"verse_en": 1.0, "classics_en": 1.0},
        "books": {"books_en": 1.0},
        "code": {"c_code": 1.0},
        "qa": {},
    }[target]


def corpus_recipe(corpus: Path, workdir: Path, *, token_budget: int = 600_000, vocab_size: int = 1024) -> Recipe:
    """Twelve sources, and every target of the benchmark in the one catalog; swap the target with `with_target`.

    Production is as long as the search and no cap binds, so that methods without constraints compete on equal terms.
    """
    sources = json.loads((corpus / "sources.json").read_text())
    questions = json.loads((corpus / "sft" / "sources.json").read_text())
    content: dict[str, Any] = {
        "workdir": str(workdir),
        "tokenizer": {"train": {"vocab_size": vocab_size, "sample_bytes": 4_000_000}},
        "sources": {name: _source(corpus, source) for name, source in sources.items()},
        "target": {"sources": target_sources("all", list(sources)), "files": _questions(corpus, questions)},
        "proxy": {"config": PROXY},
        "deepspeed": {"zero_stage": 0},
        "training": {"token_budget": token_budget, "sequence_length": 64, "global_batch": 16, "learning_rate": 6e-3},
        "search": {"eval_sequences": 96, "constraints": {"epoch_caps": False}},
        "emit": {"token_budget": token_budget},
    }
    return parse_recipe(content, name="benchmark corpus").located(corpus)


def _source(corpus: Path, source: dict[str, Any]) -> dict[str, Any]:
    found = {
        "files": [str(corpus / path) for path in source["train"]],
        "valid_files": [str(corpus / path) for path in source["valid"]],
    }
    return found | ({"text": source["text_key"]} if source["text_key"] else {})


def _questions(corpus: Path, questions: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "files": [str(corpus / path) for path in questions[name]["valid"]],
            "prompt": questions[name]["question_key"],
            "completion": questions[name]["answer_key"],
        }
        for name in QA_SETS
    }


def with_target(recipe: Recipe, target: str) -> Recipe:
    """The recipe with one of TARGETS; the catalog stays the same."""
    files = recipe.required("target").files if target == "qa" else {}
    section = TargetSection(sources=target_sources(target, list(recipe.sources)), files=files)
    return recipe.model_copy(update={"target": section}).located(recipe.base)


def prepare(recipe: Recipe) -> Catalog:
    """Preprocess once; later calls find it done."""
    return preprocess(plan_preprocess(recipe), workers=Workers(quiet=True)).catalog


def add_corpus_argument(parser: argparse.ArgumentParser) -> None:
    """--corpus, by default the variable FASTMIX_CORPUS."""
    parser.add_argument("--corpus", type=Path, default=os.environ.get("FASTMIX_CORPUS"), help="default: $FASTMIX_CORPUS")


def corpus_of(options: argparse.Namespace) -> Path:
    """The folder given, or the end of the program with a remedy."""
    if options.corpus is None or not (Path(options.corpus) / "sources.json").is_file():
        sys.exit("no corpus: give --corpus DIR or set FASTMIX_CORPUS to a folder with sources.json")
    return Path(options.corpus)
