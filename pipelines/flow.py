"""The whole flow: preprocess, search, emit and report, with everything refused before the step that it would spoil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastmix_data.manifest.manifest import Manifest, check_emit, emit_manifest
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Mixture, load_mixture
from fastmix_data.shards.catalog import Catalog, load_catalog

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    catalog: Catalog
    mixture: Mixture
    manifest: Manifest
    report: Path


def check_recipe(recipe: Recipe, *, num_ranks: int) -> None:
    """Refuse what can be known to fail before any work: inputs, batch sizes, bounds of the mixture, the proxy's configuration."""
    from pipelines.preprocess.run import check_inputs
    from train.mixture.constraints import stated_constraints
    from train.proxy.model import proxy_config
    from train.search.search import micro_batch

    check_inputs(recipe)
    micro_batch(recipe, num_ranks)
    stated_constraints(recipe.search.constraints, sources=list(recipe.sources))
    proxy_config(recipe.proxy, resolve=recipe.resolve, vocab_size=None, sequence_length=recipe.search.sequence_length)


def emit(recipe: Recipe, *, mixture_path: Path | None = None, replace: bool = False) -> Manifest:
    """Write the manifest of a recipe from a mixture file, the search's own when not given."""
    path = mixture_path or recipe.paths.root / "search" / "mixture.json"
    mixture = load_mixture(path)
    return emit_manifest(
        load_catalog(recipe.paths.catalog),
        mixture,
        emit=recipe.emit,
        directory=recipe.paths.root / "manifest",
        replace=replace,
    )


def run(
    recipe: Recipe,
    *,
    num_workers: int | None,
    scheduler: str | None,
    num_ranks: int,
    num_seeds: int | None = None,
    replace: bool,
    quiet: bool,
    say: Say,
) -> RunResult:
    """Do what is missing of the whole flow."""
    check_recipe(recipe, num_ranks=num_ranks)
    from pipelines.preprocess.run import preprocess
    from pipelines.report.page import write_report
    from train.search.search import search

    preprocessed = preprocess(recipe, num_workers=num_workers, scheduler=scheduler, replace=replace, quiet=quiet)
    for text in (*preprocessed.warnings, preprocessed.message):
        say(text)
    catalog = preprocessed.catalog
    check_emit(catalog, recipe.emit)
    searched = search(recipe, num_seeds=num_seeds, num_ranks=num_ranks, replace=replace, quiet=quiet)
    for text in (*searched.warnings, searched.message):
        say(text)
    manifest = emit(recipe, replace=replace)
    say(manifest.message)
    report = write_report(recipe.paths.root)
    say(f"wrote {report}")
    return RunResult(catalog, searched.mixture, manifest, report)
