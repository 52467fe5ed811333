"""Train a small base model on plain text, and lay question-answer sets beside it for the recipe examples/post_training.yaml.

    python examples/post_training.py CORPUS FOLDER
    fastmix run FOLDER/post_training.yaml

CORPUS has plain text in books_en, classics_en, dictionary_en and proposals, and questions with answers in sft/NAME. The base model takes
a minute on two CPU cores. With a checkpoint of your own you need nothing but the recipe.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path
from typing import Any

import orjson

from fastmix_data.machine import Workers, let_waiting_threads_sleep
from fastmix_data.recipe.recipe import Recipe
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess

TEXTS = ("books_en", "classics_en", "dictionary_en", "proposals")
SETS = ("arc_challenge", "gsm8k", "hellaswag", "piqa", "sciq", "strategyqa")


def base_recipe(corpus: Path, *, token_budget: int, vocab_size: int) -> dict[str, Any]:
    """A small llama and its tokenizer, on plain text without a single question of the sets."""
    return {
        "workdir": "base-run",
        "tokenizer": {"train": {"vocab_size": vocab_size}},
        "sources": {name: {"files": str(corpus / name / "train-*")} for name in TEXTS},
        "shards": {"valid_fraction": 0},
        "proxy": {
            "config": {
                "model_type": "llama",
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 344,
                "max_position_embeddings": 512,
            }
        },
        "training": {"token_budget": token_budget, "sequence_length": 256, "global_batch": 16},
        "search": {"update_interval": 1},  # nothing is searched: any budget will do
    }


def train_base_model(recipe: Recipe, folder: Path) -> None:
    """A checkpoint with its tokenizer, trained on the sources by size."""
    let_waiting_threads_sleep()  # before torch is imported, which reads it
    from train.mixture.named_mixtures import stated_weights
    from train.proxy.engine import process_group
    from train.proxy.training import ProxyPlan, train_on_mixture

    catalog = preprocess(plan_preprocess(recipe), workers=Workers()).catalog
    plan = ProxyPlan(catalog, recipe.proxy, recipe.base, recipe.required("training"), recipe.deepspeed)
    with process_group(rank=0, world_size=1):
        run = train_on_mixture(plan, stated_weights(catalog, "proportional", unit="tokens"), seed=0)
        run.engine.module.save_pretrained(folder)
        run.engine.close()
    shutil.copy(recipe.paths.tokenizer, folder / "tokenizer.json")
    print(f"base model of {plan.training.num_tokens:,} tokens in {folder}, {run.seconds:.0f} s")


def write_sets(corpus: Path, folder: Path, *, num_examples: int) -> None:
    """The sets, and `shuffled`: their questions, each with the answer to another one."""
    pairs: list[dict[str, str]] = []
    for name in SETS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in ("train", "valid"):
            lines = (corpus / "sft" / name / f"{split}.jsonl").read_bytes().splitlines(keepends=True)[:num_examples]
            (folder / name / f"{split}.jsonl").write_bytes(b"".join(lines))
            pairs += map(orjson.loads, lines if split == "train" else ())
    answers = [pair["answer"] for pair in pairs]
    random.Random(0).shuffle(answers)
    shuffled = [{"question": pair["question"], "answer": answer} for pair, answer in zip(pairs, answers, strict=True)]
    (folder / "shuffled").mkdir(exist_ok=True)
    (folder / "shuffled" / "train.jsonl").write_bytes(
        b"".join(orjson.dumps(pair) + b"\n" for pair in shuffled[: len(pairs) // 4])
    )


def main() -> None:
    """Prepare the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=1_200_000, help="Tokens of the base model's training.")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--examples", type=int, default=10_000, help="Most examples of each set.")
    options = parser.parse_args()
    corpus, folder = options.corpus.resolve(), options.folder.resolve()
    write_sets(corpus, folder / "sft", num_examples=options.examples)
    recipe = Recipe.model_validate(base_recipe(corpus, token_budget=options.tokens, vocab_size=options.vocab_size)).located(
        folder
    )
    train_base_model(recipe, folder / "base")
    shutil.copy(Path(__file__).with_suffix(".yaml"), folder)
    print(f"fastmix run {folder / 'post_training.yaml'}")


if __name__ == "__main__":
    main()
