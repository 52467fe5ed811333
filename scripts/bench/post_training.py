"""The search from a checkpoint beside other methods: question-answer sets, one with the answers of others, and two plain texts.

    python scripts/bench/post_training.py [--corpus DIR] [--workdir DIR] [--search-seeds 3] [--seeds 2]

The base is trained here on plain text, as in examples/post_training.py, without a single question. Each search fine-tunes it; fresh copies
of it, fine-tuned on the mixture found, confirm it on the half of the target that no search saw. Targets are gsm8k, sciq with arc, and all
six sets. The tables are those of search_quality.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from corpus_recipe import QA_SETS, add_corpus_arguments, corpus_of, prepare, with_seed
from search_quality import against_table, compare_all, gain_table, units_of

from fastmix_data.recipe.load import parse_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.target import TargetSection
from train.search.plan import SearchPlan, plan_search

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from post_training import base_recipe, train_base_model, write_sets

TARGETS = {"gsm8k": ("gsm8k",), "sciq, arc": ("sciq", "arc_challenge"), "all six": QA_SETS}
METHODS = "fastmix,trials,count,uniform,proportional,regmix:16"
TEXTS = ("books_en", "proposals")
BASE_TOKENS, VOCAB_SIZE = 3_000_000, 4096
TOKEN_BUDGET = 600_000


def bench_recipe(corpus: Path, workdir: Path, *, token_budget: int) -> Recipe:
    """Nine sources and a target file for each set; the base model and the sets lie in the workdir."""
    sets, texts = workdir / "sft", {name: {"files": str(corpus / name / "train-*")} for name in TEXTS}
    fields = {"prompt": "question", "completion": "answer"}
    content: dict[str, Any] = {
        "workdir": str(workdir / "run"),
        "tokenizer": {"file": str(workdir / "base" / "tokenizer.json")},
        "sources": {name: {"files": str(sets / name / "train.jsonl"), **fields} for name in (*QA_SETS, "shuffled")} | texts,
        "target": {"files": {f"{name}_test": {"files": str(sets / name / "valid.jsonl"), **fields} for name in QA_SETS}},
        "proxy": {"checkpoint": str(workdir / "base")},
        "deepspeed": {"zero_stage": 0},
        # The default rate is meant for models a thousand times as large.
        "training": {"token_budget": token_budget, "sequence_length": 256, "global_batch": 4, "learning_rate": 5e-4},
        "search": {"target_batch": 4, "eval_sequences": 48, "constraints": {"epoch_caps": False}},
        "emit": {"token_budget": token_budget},
    }
    return parse_recipe(content, name="post-training benchmark").located(workdir)


def with_target(recipe: Recipe, sets: tuple[str, ...]) -> Recipe:
    """The recipe with some of the sets as its target."""
    every = recipe.required("target").files
    section = TargetSection(sources={}, files={f"{name}_test": every[f"{name}_test"] for name in sets})
    return recipe.model_copy(update={"target": section}).located(recipe.base)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workdir = Path("/tmp/fastmix-post-training")
    add_corpus_arguments(parser, workdir=workdir, token_budget=TOKEN_BUDGET, choices=list(TARGETS), targets=list(TARGETS))
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=int, default=2, help="confirming proxies of each mixture")
    parser.add_argument("--search-seeds", type=int, default=3, help="searches and swarms, with seeds 0, 1 and so on")
    options = parser.parse_args()
    corpus, workdir = corpus_of(options).resolve(), options.workdir.resolve()
    if not (workdir / "base").exists():
        write_sets(corpus, workdir / "sft", num_examples=10_000)
        base = Recipe.model_validate(base_recipe(corpus, token_budget=BASE_TOKENS, vocab_size=VOCAB_SIZE)).located(workdir)
        train_base_model(base, workdir / "base")
    recipe = bench_recipe(corpus, workdir, token_budget=options.token_budget)
    catalog = prepare(recipe)

    def plan_of(target: str, seed: int) -> SearchPlan:
        return plan_search(with_target(with_seed(recipe, seed), TARGETS[target]), catalog)

    results = compare_all(plan_of, recipe.paths.compare.root / "targets", options)
    units = {name: units_of(found) for name, found in results.items()}
    print("\n\n".join([gain_table(units), *(against_table(units, method) for method in ("count", "uniform"))]))


if __name__ == "__main__":
    main()
