"""A comparison that is done, and one to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_comparison import fastmix, run_compare, write_recipe


@pytest.fixture(scope="session")
def compared_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preprocessed folder with a finished comparison; nobody changes it."""
    recipe = write_recipe(tmp_path_factory.mktemp("compare"))
    assert fastmix("preprocess", recipe, "--workers", 1).exit_code == 0
    assert "mean rank" in run_compare(recipe).output
    return recipe


@pytest.fixture
def compared(compared_once: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(compared_once.parent, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / "recipe.yaml"
