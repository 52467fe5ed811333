"""Planted corpora: sources whose worth for the target is known by construction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml
from planted_shards import BLOCK, WINDOW, training_and_search, write_split

from fastmix_data.recipe.load import load_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from train.search.plan import SearchPlan, plan_search

VOCABULARY = 64


def markov_chain(seed: int) -> np.ndarray:
    """A transition matrix with about three likely successors per token."""
    logits = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)) * 3
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def draw(transitions: np.ndarray, num_tokens: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cumulative = transitions.cumsum(axis=1)
    uniform = rng.random(num_tokens)
    tokens = np.zeros(num_tokens, np.int64)
    for i in range(1, num_tokens):
        tokens[i] = min(np.searchsorted(cumulative[tokens[i - 1]], uniform[i]), VOCABULARY - 1)
    return tokens


def planted_rows(root: Path) -> list[ShardRow]:
    """`same` and `copy` have the target's distribution, `other` another one, `noise` none, `masked` the target's, three quarters masked."""
    wanted, other = markov_chain(1), markov_chain(2)
    noise = np.full((VOCABULARY, VOCABULARY), 1 / VOCABULARY)
    rows = []
    for number, (source, chain) in enumerate(
        {"noise": noise, "same": wanted, "other": other, "masked": wanted, "copy": wanted}.items()
    ):
        rows.append(write_split(root, source, "train", draw(chain, 20_000, 10 + number), masked=source == "masked"))
        rows.append(write_split(root, source, "valid", draw(chain, 4_000, 20 + number), masked=source == "masked"))
    return rows


@pytest.fixture(scope="session")
def planted_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    (root / "rows.json").write_bytes(orjson.dumps([row.__dict__ for row in planted_rows(root)]))
    return root


@pytest.fixture
def planted_recipe(planted_template: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe whose workdir is already preprocessed; `sources` chooses among the planted ones."""

    def make(
        *,
        sources: tuple[str, ...] = ("noise", "same", "other"),
        name: str = "run",
        emit: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        if not (root / "shards").exists():
            (root / "shards").symlink_to(planted_template / "shards")
        rows = [
            ShardRow(**row) for row in orjson.loads((planted_template / "rows.json").read_bytes()) if row["source"] in sources
        ]
        examples = WINDOW if "masked" in sources else None
        info = CatalogInfo(BLOCK, VOCABULARY, 0, "planted", sources=sources, example_tokens=examples)
        Catalog(root, info, rows).save(root / "catalog.parquet")
        defaults = {
            "token_budget": 16 * 32 * 120,
            "sequence_length": 32,
            "global_batch": 16,
            "target_batch": 8,
            "update_interval": 4,
            "learning_rate": 1e-2,
            "eval_sequences": 16,
            # Counts would know these answers before the first step; what is tested is how scores find them.
            "initial_weights": "uniform",
            "average_fraction": 0.5,
        }
        recipe = {
            "workdir": name,
            "tokenizer": {"bytes": True},
            "sources": {source: {"files": f"{source}.txt"} for source in sources},
            "shards": {"block_tokens": BLOCK},
            "target": {"sources": {"same": 1}},
            "proxy": {
                "config": {
                    "model_type": "llama",
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 48,
                }
            },
            **training_and_search({**defaults, **settings}),
            "emit": emit or {"token_budget": 1000},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    return make


@pytest.fixture
def planted_plan(planted_recipe: Callable[..., Path]) -> Callable[..., SearchPlan]:
    """The plan of a search of planted sources: overrides of the recipe, then what `planted_recipe` takes."""

    def make(*overrides: str, **settings: Any) -> SearchPlan:
        return plan_search(load_recipe(planted_recipe(**settings), overrides))

    return make
