"""Count, scores and trials at the length of a real proxy: a search of 50 M tokens, and fresh proxies on what each of them proposed.

With FASTMIX_CORPUS the target is question answering on the benchmark corpus, without it that of the demo's corpus.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from row import ON_GPU, say

from fastmix_data.machine import Workers
from fastmix_data.recipe.load import load_recipe, parse_recipe
from fastmix_data.recipe.recipe import Recipe
from pipelines.demo.corpus import write_sample_corpus
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess
from train.proxy.engine import process_group
from train.proxy.training import train_on_mixture
from train.search.plan import SearchPlan, plan_search
from train.search.search import search
from train.target.target import target_losses

PROXY = {
    "model_type": "llama",
    "hidden_size": 256 if ON_GPU else 32,
    "num_hidden_layers": 6 if ON_GPU else 1,
    "num_attention_heads": 4,
    "intermediate_size": 688 if ON_GPU else 48,
}
TRAINING = {
    "token_budget": 50_000_000 if ON_GPU else 4 * 64 * 500,
    "sequence_length": 256 if ON_GPU else 64,
    "global_batch": 64 if ON_GPU else 4,
    "learning_rate": 1e-3,
}
SEARCH = {"target_batch": 32 if ON_GPU else 4, "eval_sequences": 64 if ON_GPU else 8, "constraints": {"epoch_caps": False}}


def recipe_in(folder: Path) -> tuple[Recipe, str]:
    """The recipe of the search, and what it is of."""
    changes = {"proxy": {"config": PROXY}, "training": TRAINING, "search": SEARCH}
    corpus = os.environ.get("FASTMIX_CORPUS")
    if corpus:
        from corpus_recipe import corpus_recipe, with_target

        recipe, name = with_target(corpus_recipe(Path(corpus), folder / "run", vocab_size=8192), "qa"), "question answering"
    else:
        path = write_sample_corpus(folder)
        recipe, name = load_recipe(path), "the demo's target"
    content = {**recipe.model_dump(mode="json", exclude_none=True), **changes, "emit": {"token_budget": TRAINING["token_budget"]}}
    return parse_recipe(content, name="long search").located(recipe.base), name


def confirm(plan: SearchPlan, weights_K: np.ndarray) -> float:
    """Loss of a fresh proxy, with another seed than the search's, on the half of the target that it did not see."""
    importance = plan.target.weights()
    run = train_on_mixture(plan.proxy, weights_K, seed=plan.proxy.training.seed + 100)
    losses = target_losses(run.engine, plan.proxy, names=list(importance), half="unseen", num_sequences=SEARCH["eval_sequences"])
    run.engine.close()
    return sum(weight * losses[name] for name, weight in importance.items())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, process_group(rank=0, world_size=1):
        recipe, name = recipe_in(Path(folder))
        catalog = preprocess(plan_preprocess(recipe), workers=Workers(quiet=True)).catalog
        plan = plan_search(recipe, catalog)
        mixture = search(plan, quiet=True).mixture
        trials, setting = (
            mixture.trials,
            f"{mixture.search.num_parameters / 1e6:.1f} M, {TRAINING['token_budget'] / 1e6:.3g} M tokens",
        )
        assert trials is not None
        ahead = "; ".join(
            f"{other} by {mean:+.3f} ({low:+.3f} to {high:+.3f})" for other, (mean, low, high) in trials.ahead.items()
        )
        say(
            f"search of {name}",
            setting,
            f"{mixture.search.seconds:.0f} s; {trials.winner} ahead of {ahead}; noise of a trial {trials.noise:.3f}",
        )
        uniform_K = np.full(len(catalog.sources), 1 / len(catalog.sources))
        reference = confirm(plan, uniform_K)
        say("fresh proxy on uniform", setting, f"{reference:.3f} nats")
        for tried, shares in trials.mixtures.items():
            loss = confirm(plan, np.array([shares[source] for source in catalog.sources]))
            largest = sorted(shares.items(), key=lambda item: -item[1])[:3]
            text = ", ".join(f"{source} {share:.0%}" for source, share in largest)
            say(f"fresh proxy on {tried}, less uniform", setting, f"{loss - reference:+.3f} nats; {text}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
