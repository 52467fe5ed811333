"""A search of two small sources, the second masked, for a masked target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted_languages import recipe as planted_recipe
from planted_shards import BLOCK, WINDOW, write_split

from fastmix_data.recipe.load import parse_recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from train.search.plan import SearchPlan, plan_search

VOCAB_SIZE = 9


@pytest.fixture
def small_plan(tmp_path: Path) -> SearchPlan:
    random, root = np.random.default_rng(0), tmp_path / "run"
    rows = [
        write_split(root, "plain", "train", random.integers(0, VOCAB_SIZE, 500)),
        write_split(root, "masked", "train", random.integers(0, VOCAB_SIZE // 2, 300), masked=True),
        write_split(root, "blend", "valid", random.integers(0, VOCAB_SIZE, 600), masked=True),
    ]
    info = CatalogInfo(
        BLOCK,
        VOCAB_SIZE,
        VOCAB_SIZE - 1,
        "small",
        sources=("plain", "masked"),
        target_files=("blend",),
        example_tokens=WINDOW,
    )
    recipe = parse_recipe(planted_recipe("run", ["plain", "masked"], {}), name="small").located(tmp_path)
    return plan_search(recipe, Catalog(root, info, rows))
