"""The corpus of these checks: prepared once, copied for each run, and what a search leaves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from installed_command import read_recipe, write_corpus, write_recipe

from fastmix_data.workdir import SearchFolder, Workdir


def prepare(folder: Path, *, token_budget: str) -> Path:
    """A corpus with shards, and the search on two ranks of this machine that others are measured by."""
    write_corpus(folder)
    recipe = read_recipe(folder)
    recipe["training"] |= {"token_budget": token_budget}
    recipe["search"] |= {"trial_fraction": 0.0}
    write_recipe(folder, recipe)
    fastmix = [sys.executable, "-m", "pipelines.cli"]
    subprocess.run([*fastmix, "preprocess", "recipe.yaml", "--workers", "1"], cwd=folder, check=True, capture_output=True)
    run = copied(folder, "local")
    subprocess.run([*fastmix, "search", "recipe.yaml", "--nproc", "2"], cwd=run, check=True, capture_output=True)
    return folder


def copied(folder: Path, name: str, *, with_shards: bool = True) -> Path:
    """A folder with the recipe, its data and perhaps its shards, and no search in it."""
    run = folder / name
    run.mkdir()
    shutil.copy(folder / "recipe.yaml", run)
    for path in folder.glob("*.jsonl"):
        (run / path.name).symlink_to(path)
    if with_shards:
        shutil.copytree(folder / "run", run / "run")
    return run


def trajectory(folder: Path) -> np.ndarray:
    """Shares after every update, (updates, K)."""
    search: SearchFolder = Workdir(folder / "run").search
    table = pq.read_table(search.trajectory)
    return np.array(table["weights"].to_pylist())
