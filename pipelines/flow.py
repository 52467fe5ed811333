"""The whole flow: preprocess, search, emit, report and export, with everything refused before the step that it would spoil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastmix_data.errors import MismatchError, RecipeError
from fastmix_data.loading.sinks import SinkKind, require_package
from fastmix_data.machine import Workers
from fastmix_data.manifest.continuation import continue_after
from fastmix_data.manifest.emit import check_emit, emit_manifest
from fastmix_data.manifest.estimated import COMPLETE, EmitPlan, plan_emit
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.phases import plan_phases
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Mixture, load_mixture
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.workdir import ManifestFolder


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        exports: formats that the recipe asks for, each with the file that its trainer is given.
    """

    catalog: Catalog
    mixture: Mixture
    manifest: Manifest | EmitPlan
    report: Path
    exports: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class HalfTrained:
    """Where a run stands that is to go on with another manifest.

    Attributes:
        tokens: of the whole run so far, as the trainer counts them.
        manifest: that it reads; the workdir's when None.
        sequence_length: that it reads it in; see `continue_after`.
    """

    tokens: int
    manifest: Path | None = None
    sequence_length: int | None = None


def emit(
    recipe: Recipe,
    *,
    mixture_path: Path | None = None,
    directory: Path | None = None,
    after: HalfTrained | None = None,
    replace: bool = False,
) -> Manifest | EmitPlan:
    """Write the manifest of a recipe, or of the rest of a run; over a sample, what it will be about.

    Args:
        mixture_path: for what the recipe's phases state no mixture of; the search's when None.
        directory: to write to; the workdir's own when None, for the rest of a run one beside the manifest that it continues.
    """
    section, paths = recipe.required("emit"), recipe.paths
    if mixture_path is not None and not section.needs_search:
        problem = "every phase of the recipe has a mixture of its own, so this one would not be used"
        raise RecipeError(f"--mixture {mixture_path}", problem, "leave it out, or take weights and mixture out of a phase")
    files = phase_mixtures(recipe)
    mixture = load_mixture(mixture_path or paths.search.mixture) if section.needs_search else None
    continued, folder = None, paths.manifest
    if after is not None:
        old = load_manifest(after.manifest or paths.manifest.root)
        continued = continue_after(old, after.tokens, sequence_length=after.sequence_length)
        folder = ManifestFolder(old.directory).after(after.tokens)
        if (directory or folder.root).resolve() == old.directory.resolve():
            raise MismatchError(old.path, "is the manifest that is to be continued", "name another folder with --out")
    catalog, directory = load_catalog(paths.catalog), directory or folder.root
    if continued is None:
        return _emit(catalog, mixture, section, directory, files=files, replace=replace)
    if catalog.info.sample is not None:
        raise MismatchError(paths.catalog, "holds a sample, and no run can go on with blocks that are not there yet", COMPLETE)
    return emit_manifest(
        catalog, mixture, emit=section, directory=directory, mixture_files=files, after=continued, replace=replace
    )


def _emit(
    catalog: Catalog,
    mixture: Mixture | None,
    section: EmitSection,
    directory: Path,
    *,
    files: dict[str, Mixture],
    replace: bool,
) -> Manifest | EmitPlan:
    if catalog.info.sample is not None:
        phases = plan_phases(section, catalog, mixture=mixture, files=files)
        asked = [(phase.token_budget, phase.weights) for phase in phases]
        return plan_emit(catalog, asked, emit=section, directory=directory, replace_found=replace)
    manifest = emit_manifest(catalog, mixture, emit=section, directory=directory, mixture_files=files, replace=replace)
    ManifestFolder(directory).plan.unlink(missing_ok=True)
    return manifest


def phase_mixtures(recipe: Recipe) -> dict[str, Mixture]:
    """The mixture files that phases name, by the path as it is written there.

    Raises:
        RecipeError: one is missing, is none, or is of other sources than the recipe's.
    """
    section = recipe.required("emit")
    named = dict.fromkeys(phase.mixture for phase in section.phases or () if phase.mixture is not None)
    found = {path: load_mixture(recipe.resolve(path)) for path in named}
    for mixture in found.values():
        mixture.weights_K(list(recipe.sources))
    return found


def run(
    recipe: Recipe,
    *,
    workers: Workers,
    num_ranks: int,
    num_seeds: int | None = None,
    sinks: tuple[SinkKind, ...] = (),
    replace: bool,
    say: Callable[..., None],
) -> RunResult:
    """Do what is missing of the whole flow; what can be known to fail is refused before any work."""
    from pipelines.export.run import check_directory
    from pipelines.preprocess.plan import plan_preprocess
    from pipelines.preprocess.run import preprocess
    from pipelines.report.page import write_report
    from train.recording.search_recorder import Told
    from train.search.plan import plan_search
    from train.search.search import search

    for kind in sinks:
        require_package(kind)
    check_search_sections(recipe, num_ranks=num_ranks)
    section, files = recipe.required("emit"), phase_mixtures(recipe)
    for wanted in recipe.exports:
        check_directory(recipe.export_directory(wanted))
    preprocessed = preprocess(plan_preprocess(recipe), workers=workers, replace=replace)
    say(*preprocessed.warnings, preprocessed.message)
    catalog = preprocessed.catalog
    check_emit(catalog, section)
    plan = plan_search(recipe, catalog)
    told = Told(sinks=sinks, logs=plan.folder)
    searched = search(plan, num_seeds=num_seeds, num_ranks=num_ranks, replace=replace, quiet=workers.quiet, told=told)
    say(*searched.warnings, searched.message)
    manifest = _emit(catalog, searched.mixture, section, recipe.paths.manifest.root, files=files, replace=replace)
    say(manifest.message)
    report = write_report(recipe.paths)
    say(f"wrote {report}")
    if isinstance(manifest, EmitPlan):
        say(*([f"exports: {', '.join(wanted.to for wanted in recipe.exports)} wait for the manifest"] if recipe.exports else []))
        return RunResult(catalog, searched.mixture, manifest, report, ())
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
        activation_checkpointing=training.activation_checkpointing,
    )
