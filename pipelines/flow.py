"""The whole flow: preprocess, search, emit, report and export, with everything refused before the step that it would spoil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastmix_data.machine import Workers
from fastmix_data.manifest.emit import check_emit, emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Mixture, load_mixture
from fastmix_data.shards.catalog import Catalog, load_catalog


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        exports: formats that the recipe asks for, each with the file that its trainer is given.
    """

    catalog: Catalog
    mixture: Mixture
    manifest: Manifest
    report: Path
    exports: tuple[tuple[str, Path], ...]


def emit(recipe: Recipe, *, mixture_path: Path | None = None, replace: bool = False) -> Manifest:
    """Write the manifest of a recipe from a mixture file, the search's own when not given."""
    section, paths = recipe.required("emit"), recipe.paths
    mixture = load_mixture(mixture_path or paths.search.mixture)
    return emit_manifest(load_catalog(paths.catalog), mixture, emit=section, directory=paths.manifest.root, replace=replace)


def run(
    recipe: Recipe,
    *,
    workers: Workers,
    num_ranks: int,
    num_seeds: int | None = None,
    replace: bool,
    say: Callable[..., None],
) -> RunResult:
    """Do what is missing of the whole flow; what can be known to fail is refused before any work."""
    from pipelines.export.run import check_directory
    from pipelines.preprocess.plan import plan_preprocess
    from pipelines.preprocess.run import preprocess
    from pipelines.report.page import write_report
    from train.search.plan import plan_search
    from train.search.search import search

    check_search_sections(recipe, num_ranks=num_ranks)
    section = recipe.required("emit")
    for wanted in recipe.exports:
        check_directory(recipe.export_directory(wanted))
    preprocessed = preprocess(plan_preprocess(recipe), workers=workers, replace=replace)
    say(*preprocessed.warnings, preprocessed.message)
    catalog = preprocessed.catalog
    check_emit(catalog, section)
    plan = plan_search(recipe, catalog)
    searched = search(plan, num_seeds=num_seeds, num_ranks=num_ranks, replace=replace, quiet=workers.quiet)
    say(*searched.warnings, searched.message)
    manifest = emit_manifest(catalog, searched.mixture, emit=section, directory=recipe.paths.manifest.root, replace=replace)
    say(manifest.message)
    report = write_report(recipe.paths)
    say(f"wrote {report}")
    given = export_all(recipe, workers=workers, replace=replace, say=say)
    return RunResult(catalog, searched.mixture, manifest, report, given)


def export_all(recipe: Recipe, *, workers: Workers, replace: bool, say: Callable[..., None]) -> tuple[tuple[str, Path], ...]:
    """Write the recipe's manifest in every format that it asks for; returns each with what its trainer is given."""
    from pipelines.export.run import export

    given = []
    for section in recipe.exports:
        exported = export(
            recipe.paths.manifest.root,
            to=section.to,
            directory=recipe.export_directory(section),
            files=section.files,
            max_file_bytes=section.max_file_bytes,
            workers=workers,
            replace=replace,
        )
        say(*exported.remarks, exported.message)
        given.append((section.to, exported.files[0]))
    return tuple(given)


def check_search_sections(recipe: Recipe, *, num_ranks: int) -> None:
    """Refuse a search that cannot work whatever the data: its batch sizes, bounds of the mixture, a proxy that is not built or scored."""
    from pipelines.preprocess.prepare_tokenizer import expected_vocabulary
    from train.mixture.constraints import stated_constraints
    from train.proxy.model import build_proxy, proxy_config
    from train.search.plan import check_batches, check_proxy

    training, proxy, base = recipe.required("training"), recipe.proxy, recipe.base
    recipe.required("target")
    check_batches(training, recipe.search, num_ranks=num_ranks)
    stated_constraints(recipe.search.constraints, sources=list(recipe.sources))
    vocab_size = expected_vocabulary(recipe.tokenizer, base=base)
    config = proxy_config(proxy, base=base, vocab_size=vocab_size, sequence_length=training.sequence_length)
    check_proxy(
        build_proxy(proxy, config=config, base=base, seed=training.seed),
        scope=recipe.search.hypergradient,
        has_examples=recipe.has_examples,
        document_attention=training.document_attention,
    )
