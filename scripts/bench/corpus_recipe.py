"""The benchmark corpus as a recipe: twelve sources, ten targets, one workdir for all of them.

The corpus is a folder with `sources.json` and `sft/sources.json`, each naming sources with their train and valid files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmix_data.machine import Workers, num_cores
from fastmix_data.recipe.load import parse_recipe
from fastmix_data.recipe.proxy import ProxySection
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.target import TargetSection
from fastmix_data.shards.catalog import Catalog
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess

QA_SETS = ("arc_challenge", "piqa", "sciq", "hellaswag", "gsm8k", "strategyqa")
TUNED_TARGETS = ("all", "literary", "books", "code", "qa")  # the defaults of the search were chosen on these
REPORTED_TARGETS = ("scripting", "german", "manpages", "dictionary", "gsm8k")  # and on none of these
TARGETS = (*TUNED_TARGETS, *REPORTED_TARGETS)
FOUR_TARGETS = ("all", "literary", "code", "qa")  # of the first, for benchmarks with many runs of each
TOKEN_BUDGET, VOCAB_SIZE = 600_000, 1024
PROXY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 172,
}


def target_sources(target: str, sources: list[str]) -> list[str]:
    """Sources whose held-out splits make up a target; none where it is made of files that no source resembles."""
    return {
        "all": [name for name in sources if name != "junk"],
        "literary": ["verse_en", "classics_en"],
        "books": ["books_en"],
        "code": ["c_code"],
        "qa": [],
        "scripting": ["python_code", "changelogs"],
        "german": ["german_prose"],
        "manpages": ["manpages_en"],
        "dictionary": ["dictionary_en"],
        "gsm8k": [],
    }[target]


def target_files(target: str) -> tuple[str, ...]:
    """Question-answer sets that make up a target."""
    return {"qa": QA_SETS, "gsm8k": ("gsm8k",)}.get(target, ())


def corpus_recipe(corpus: Path, workdir: Path, *, token_budget: int = TOKEN_BUDGET, vocab_size: int = VOCAB_SIZE) -> Recipe:
    """Twelve sources, and every target of the benchmark in the one catalog; swap the target with `with_target`.

    Production is as long as the search and no cap binds, so that methods without constraints compete on equal terms.
    """
    sources = json.loads((corpus / "sources.json").read_text())
    questions = json.loads((corpus / "sft" / "sources.json").read_text())
    content: dict[str, Any] = {
        "workdir": str(workdir),
        "tokenizer": {"train": {"vocab_size": vocab_size, "sample_bytes": 4_000_000}},
        "sources": {name: _source(corpus, source) for name, source in sources.items()},
        "target": {"sources": dict.fromkeys(target_sources("all", list(sources)), 1.0), "files": _questions(corpus, questions)},
        "proxy": {"config": PROXY},
        "deepspeed": {"zero_stage": 0},
        # At 256 tokens nine of ten examples are whole. At twice the rate runs differ by five times as much, and end higher.
        "training": {"token_budget": token_budget, "sequence_length": 256, "global_batch": 4, "learning_rate": 3e-3},
        "search": {"target_batch": 4, "eval_sequences": 24, "constraints": {"epoch_caps": False}},
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
    every = recipe.required("target").files
    section = TargetSection(
        sources=dict.fromkeys(target_sources(target, list(recipe.sources)), 1.0),
        files={name: every[name] for name in target_files(target)},
    )
    return recipe.model_copy(update={"target": section}).located(recipe.base)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed of its training, and so of its search."""
    return recipe.model_copy(update={"training": recipe.required("training").with_seed(seed)}).located(recipe.base)


def with_proxy(recipe: Recipe, config: dict[str, Any]) -> Recipe:
    """The recipe with another model than PROXY, whose learning rate goes with the width's inverse (muP, arXiv 2203.03466)."""
    training = recipe.required("training")
    rate = training.learning_rate * PROXY["hidden_size"] / config["hidden_size"]
    changed = {"proxy": ProxySection(config=config), "training": training.model_copy(update={"learning_rate": rate})}
    return recipe.model_copy(update=changed).located(recipe.base)


def scaled_proxy(times: float, *, vocab_size: int = VOCAB_SIZE) -> dict[str, Any]:
    """PROXY made wider to about so many times its parameters; the number of layers and heads stays.

    >>> scaled_proxy(4)["hidden_size"], scaled_proxy(1) == PROXY
    (160, True)
    """
    width, inner, heads = PROXY["hidden_size"], PROXY["intermediate_size"], PROXY["num_attention_heads"]
    # Matrices between layers grow with the square of the width, embedding and head with the width: a w^2 + b w = times (a + b).
    a, b = PROXY["num_hidden_layers"] * width * (4 * width + 3 * inner), 2 * vocab_size * width
    ratio = (math.sqrt(b * b + 4 * a * times * (a + b)) - b) / (2 * a)
    even = 2 * heads  # rotary positions turn pairs within a head
    return {**PROXY, "hidden_size": even * round(width * ratio / even), "intermediate_size": round(inner * ratio)}


def prepare(recipe: Recipe) -> Catalog:
    """Preprocess once; later calls find it done."""
    return preprocess(plan_preprocess(recipe), workers=Workers(quiet=True)).catalog


def add_corpus_arguments(
    parser: argparse.ArgumentParser, *, workdir: Path, token_budget: int, choices: Sequence[str], targets: Sequence[str]
) -> None:
    """What every benchmark on the corpus may be told, and its defaults; --corpus is the variable FASTMIX_CORPUS by default."""
    parser.add_argument("--corpus", type=Path, default=os.environ.get("FASTMIX_CORPUS"), help="default: $FASTMIX_CORPUS")
    parser.add_argument("--workdir", type=Path, default=workdir)
    parser.add_argument("--targets", nargs="+", choices=choices, default=list(targets))
    parser.add_argument("--token-budget", type=int, default=token_budget, help="tokens of a proxy")
    parser.add_argument("--workers", type=int, default=num_cores(), help="processes")


def corpus_of(options: argparse.Namespace) -> Path:
    """The folder given, or the end of the program with a remedy."""
    if options.corpus is None or not (Path(options.corpus) / "sources.json").is_file():
        sys.exit("no corpus: give --corpus DIR or set FASTMIX_CORPUS to a folder with sources.json")
    return Path(options.corpus)
