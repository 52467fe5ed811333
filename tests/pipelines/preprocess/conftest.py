"""A corpus that is done, and one to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_corpora import json_lines, run, texts, write_every_format

from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.recipe import Recipe
from pipelines.preprocess.run import PreprocessResult


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, PreprocessResult]:
    """Folder, recipe and result of a run over every format; nobody changes it."""
    folder = tmp_path_factory.mktemp("done")
    recipe = load_recipe(write_every_format(folder))
    return folder, recipe, run(recipe)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Recipe]:
    """Two small sources of plain text; a function writes the recipe that reads them, with changes (None leaves a section out)."""
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts("a", 60)))
    (tmp_path / "b.jsonl").write_bytes(json_lines(texts("b", 60)))
    recipe = {
        "tokenizer": {"bytes": True},
        "sources": {"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl"}},
        "shards": {"block_tokens": 64, "valid_fraction": 0.2},
        "target": {"sources": {"a": 1}},
        "training": {"token_budget": "20k", "sequence_length": 16, "global_batch": 4},
    }

    def write(**changes: Any) -> Recipe:
        content = {key: value for key, value in (recipe | changes).items() if value is not None}
        (tmp_path / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
        return load_recipe(tmp_path / "recipe.yaml")

    return write
