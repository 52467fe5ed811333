"""Workdirs for the tests of the report: real artefacts of the package's own writers, with made-up numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.constraints import ConstraintsSection, GroupSection
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.results.mixture import Certainty, Mixture, Origin, SearchRecord, TargetRecord, load_mixture, save_mixture
from fastmix_data.results.searched_recipe import SearchedRecipe, save_searched_recipe
from fastmix_data.results.trajectory import Trajectory, TrajectoryRow
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow, load_catalog
from fastmix_data.workdir import Workdir

BLOCK = 1024
KINDS = ("web", "code", "books", "papers", "forum", "math", "news")


def make_catalog(paths: Workdir, sources: Sequence[str], *, seed: int = 0) -> Catalog:
    """A catalog with a train and a valid row for each source; the shards themselves are not written."""
    rng = np.random.default_rng(seed)
    rows = []
    for name in sources:
        for split, num_blocks in (("train", int(rng.lognormal(6, 1))), ("valid", 8)):
            path, num_tokens = f"shards/{name}/{split}.tar", num_blocks * BLOCK - 100
            counts = (num_blocks, num_tokens, num_tokens - 1, num_tokens - 1, max(1, num_tokens // 700))
            rows.append(ShardRow(name, split, path, *counts, "<u2", False, num_blocks * 3072 + 1024, "ab" * 32))
    info = CatalogInfo(BLOCK, 4096, 0, "cd" * 32, recipe_hash="ef" * 32, inputs_hash="01" * 32, sources=tuple(sources))
    Catalog(paths.root, info, rows).save(paths.catalog)
    return load_catalog(paths.catalog)


def make_search(paths: Workdir, catalog: Catalog, *, num_updates: int = 120, spread: float = 1.6, seed: int = 0) -> Mixture:
    """A mixture, its trajectory and its recipe: weights that drift from uniform to a few favourites."""
    rng = np.random.default_rng(1000 + seed)
    sources, num_sources = catalog.sources, len(catalog.sources)
    goal_K = rng.normal(0, spread, num_sources)
    logits_K = np.zeros(num_sources)
    rows, weights_UK = [], []
    for update in range(num_updates):
        logits_K += 0.04 * (goal_K - logits_K) + rng.normal(0, 0.03, num_sources)
        weights_K = np.exp(logits_K) / np.exp(logits_K).sum()
        weights_UK.append(weights_K)
        scores_K = 0.3 * (goal_K - logits_K) + rng.normal(0, 0.2, num_sources)
        loss = 4.2 + 4 * float(np.exp(-update / 12)) + float(rng.normal(0, 0.05))
        rows.append(update_row(24 + 8 * update, weights_K.tolist(), scores_K.tolist(), losses=(loss - 0.3, loss)))
    Trajectory(rows).save(paths.search.trajectory, sources=sources, targets=[])
    last_UK = np.array(weights_UK[num_updates // 2 :])
    answer_K = last_UK.mean(axis=0) / last_UK.mean(axis=0).sum()
    low_K, high_K = np.quantile(last_UK, [0.05, 0.95], axis=0).tolist()
    mixture = Mixture(
        weights=dict(zip(sources, answer_K.tolist(), strict=True)),
        method="fastmix (all parameters)",
        certainty=Certainty(interval=dict(zip(sources, zip(low_K, high_K, strict=True), strict=True))),
        search=SearchRecord(
            seed=seed,
            num_tokens=3_123_456,
            seconds=153.2,
            num_steps=rows[-1].step,
            num_updates=num_updates,
            num_parameters=1_147_712,
        ),
        target=TargetRecord(loss={"search_start": 8.319, "search_end": 4.257, "unseen_start": 8.321, "unseen_end": 4.3141}),
        made_from=Origin(catalog=catalog.fingerprint, recipe="23" * 32, trajectory="45" * 32),
    )
    save_mixture(paths.search.mixture, mixture)
    save_searched_recipe(paths.search.recipe, searched_recipe(sources))
    return mixture


def update_row(
    step: int,
    weights: list[float],
    scores: list[float],
    *,
    losses: tuple[float, float] = (5.0, 5.0),
    target_weights: Sequence[float] = (),
    target_losses: Sequence[float | None] = (),
) -> TrajectoryRow:
    """A row of the trajectory without its evidence, which no report shows; `losses` are those of training and of the target."""
    nothing: list[list[float]] = [[], [], []]
    return TrajectoryRow(step, step * 4096, weights, scores, *losses, list(target_weights), list(target_losses), *nothing)


def searched_recipe(sources: Sequence[str], groups: Mapping[str, GroupSection] | None = None) -> SearchedRecipe:
    """The sections of a search whose target is the first source."""
    return SearchedRecipe(
        target=TargetSection(sources={sources[0]: 1.0}),
        proxy=ProxySection.model_validate({}),
        deepspeed=DeepspeedSection(),
        training=TrainingSection(token_budget=4_000_000),
        search=SearchSection(constraints=ConstraintsSection(groups=dict(groups or {}))),
    )


def change_mixture(paths: Workdir, **changes: dict[str, Any]) -> Mixture:
    """Write the mixture anew with other values in these sections, or with these weights or constraints that bind."""
    mixture = load_mixture(paths.search.mixture)
    sections = {}
    for name, change in changes.items():
        section = getattr(mixture, name)
        sections[name] = section.model_copy(update=change) if isinstance(section, BaseModel) else change
    changed = mixture.model_copy(update=sections)
    save_mixture(paths.search.mixture, changed)
    return changed


def make_manifest(paths: Workdir, catalog: Catalog, mixture: Mixture) -> None:
    """A manifest of as many tokens as the catalog has, so that some sources reach their cap."""
    budget = int(catalog.num_tokens_K().sum() * 1.1)
    emit_manifest(catalog, mixture, emit=EmitSection(token_budget=budget, max_epochs=4.0), directory=paths.manifest.root)


def make_workdir(
    folder: Path, *, num_sources: int = 0, sources: Sequence[str] = (), seed: int = 0, spread: float = 1.6
) -> Workdir:
    """A finished run of so many sources, or of those named."""
    paths = Workdir(folder)
    names = list(sources) or [f"source_{number:03d}" for number in range(num_sources)]
    catalog = make_catalog(paths, names, seed=seed)
    mixture = make_search(paths, catalog, seed=seed, spread=spread)
    make_manifest(paths, catalog, mixture)
    return paths


def hundreds_of_sources(number: int) -> list[str]:
    """Names of which most begin like many others, and the last four like none."""
    return [f"{KINDS[index % 7]}_{index:03d}" for index in range(number - 4)] + ["law", "poems", "chess", "junk"]
