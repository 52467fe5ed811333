"""Workdirs for the tests of the report: real artefacts of the package's own writers, with made-up numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastmix_data.artefacts import write_json
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.recipe import EmitSection
from fastmix_data.recipe.search import SearchSection
from fastmix_data.results.mixture import Mixture, save_mixture
from fastmix_data.results.trajectory import Trajectory, TrajectoryRow
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow, load_catalog

BLOCK = 1024
KINDS = ("web", "code", "books", "papers", "forum", "math", "news")


def make_catalog(workdir: Path, sources: list[str], *, seed: int = 0) -> Catalog:
    """A catalog with a train and a valid row for each source; the shards themselves are not written."""
    rng = np.random.default_rng(seed)
    rows = []
    for name in sources:
        for split, num_blocks in (("train", int(rng.lognormal(6, 1))), ("valid", 8)):
            path, num_tokens = f"shards/{name}/{split}.tar", num_blocks * BLOCK - 100
            counts = (num_blocks, num_tokens, num_tokens - 1, num_tokens - 1, max(1, num_tokens // 700))
            rows.append(ShardRow(name, split, path, *counts, "<u2", False, num_blocks * 3072 + 1024, "ab" * 32))
    info = CatalogInfo(BLOCK, 4096, 0, "cd" * 32, recipe_hash="ef" * 32, inputs_hash="01" * 32, sources=tuple(sources))
    Catalog(workdir, info, rows).save(workdir / "catalog.parquet")
    return load_catalog(workdir / "catalog.parquet")


def make_search(workdir: Path, catalog: Catalog, *, num_updates: int = 120, spread: float = 1.6, seed: int = 0) -> Mixture:
    """A mixture and its trajectory: weights that drift from uniform to a few favourites."""
    rng = np.random.default_rng(1000 + seed)
    num_sources = len(catalog.sources)
    goal_K = rng.normal(0, spread, num_sources)
    logits_K = np.zeros(num_sources)
    rows, weights_UK = [], []
    for update in range(num_updates):
        logits_K += 0.04 * (goal_K - logits_K) + rng.normal(0, 0.03, num_sources)
        weights_K = np.exp(logits_K) / np.exp(logits_K).sum()
        weights_UK.append(weights_K)
        scores_K = 0.3 * (goal_K - logits_K) + rng.normal(0, 0.2, num_sources)
        step = 24 + 8 * update
        loss = 4.2 + 4 * float(np.exp(-update / 12)) + float(rng.normal(0, 0.05))
        rows.append(TrajectoryRow(step, step * 4096, weights_K.tolist(), scores_K.tolist(), loss - 0.3, loss))
    Trajectory(rows).save(workdir / "search" / "trajectory.parquet", sources=catalog.sources)
    last_UK = np.array(weights_UK[num_updates // 2 :])
    answer_K = last_UK.mean(axis=0) / last_UK.mean(axis=0).sum()
    low_K, high_K = np.quantile(last_UK, [0.05, 0.95], axis=0)
    mixture = Mixture(
        weights=dict(zip(catalog.sources, answer_K.tolist(), strict=True)),
        interval={name: (low, high) for name, low, high in zip(catalog.sources, low_K.tolist(), high_K.tolist(), strict=True)},
        method="fastmix (all parameters)",
        seed=seed,
        search_tokens=3_123_456,
        search_seconds=153.2,
        num_steps=(rows[-1].step),
        num_updates=num_updates,
        target_loss={"search_start": 8.319, "search_end": 4.257, "unseen_start": 8.321, "unseen_end": 4.3141},
        num_parameters=1_147_712,
        catalog_hash=catalog.fingerprint,
        recipe_hash="23" * 32,
        trajectory_sha256="45" * 32,
    )
    save_mixture(workdir / "search" / "mixture.json", mixture)
    target = {"sources": {catalog.sources[0]: 1.0}, "files": {}}
    search = SearchSection(token_budget=4_000_000).model_dump(mode="json")
    write_json(workdir / "search" / "recipe.json", {"target": target, "search": search})
    return mixture


def make_manifest(workdir: Path, catalog: Catalog, mixture: Mixture) -> None:
    """A manifest of as many tokens as the catalog has, so that some sources reach their cap."""
    budget = int(catalog.num_tokens_K().sum() * 1.1)
    emit_manifest(catalog, mixture, emit=EmitSection(token_budget=budget, max_epochs=4.0), directory=workdir / "manifest")


def make_workdir(workdir: Path, *, num_sources: int = 0, sources: Sequence[str] = (), seed: int = 0, spread: float = 1.6) -> Path:
    """A finished run of so many sources, or of those named."""
    sources = list(sources) or [f"source_{number:03d}" for number in range(num_sources)]
    catalog = make_catalog(workdir, sources, seed=seed)
    mixture = make_search(workdir, catalog, seed=seed, spread=spread)
    make_manifest(workdir, catalog, mixture)
    return workdir


def hundreds_of_sources(number: int) -> list[str]:
    """Names of which most begin like many others, and the last four like none."""
    return [f"{KINDS[index % 7]}_{index:03d}" for index in range(number - 4)] + ["law", "poems", "chess", "junk"]
