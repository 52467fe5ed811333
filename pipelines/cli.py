"""The `fastmix` command. Heavy modules are imported by the command that needs them, so that --help answers at once."""

from __future__ import annotations

import functools
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmix_data.errors import FastmixError, Interrupted, RecipeError
from fastmix_data.machine import Workers, launched_rank, let_waiting_threads_sleep
from fastmix_data.messages import shown
from pipelines.console import Console, fit_summary, mixture_notes, mixture_table, run_summary

if TYPE_CHECKING:
    from fastmix_data.recipe.recipe import Recipe

Work = Callable[..., None]
PathType = click.Path(path_type=Path)
Replace = click.option("--replace", is_flag=True, help="Replace artefacts made from another recipe or other data.")
NumWorkers = click.option(
    "--workers",
    "num_workers",
    type=click.IntRange(1),
    help="Dask worker processes; all cores by default, for compare all GPUs where there are any.",
)
Scheduler = click.option("--scheduler", metavar="ADDRESS", help="Use a running Dask cluster, as tcp://host:port.")
NumRanks = click.option("--nproc", "num_ranks", type=click.IntRange(1), default=1, help="Training ranks on this machine.")
NumSearches = click.option(
    "--seeds",
    "num_seeds",
    type=click.IntRange(1),
    help="Searches to average, with training.seed and the numbers after it; 1 unless more are finished.",
)
Overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe, as training.seed=1."
)


def _command(work: Work) -> Work:
    """Give a command --json and --debug, and turn what users can put right into one line and exit code 2."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @functools.wraps(work)
    def guarded(*args: Any, as_json: bool, debug: bool, **options: Any) -> None:
        launched = launched_rank()
        console = Console(as_json=as_json, rank=launched.rank if launched is not None else 0)
        try:
            work(*args, console=console, **options)
        except (FastmixError, KeyboardInterrupt, OSError) as error:
            if debug:
                traceback.print_exc()
            if isinstance(error, KeyboardInterrupt):
                error = Interrupted("", "interrupted", "what is finished is kept, and the same command goes on from there")
            console.fail(error)
            sys.exit(2)

    return guarded


def _recipe_command(work: Work) -> Work:
    """A command that is given a recipe, as file and overrides, and gets it read as `recipe`."""

    @click.argument("recipe_path", metavar="RECIPE", type=PathType)
    @Overrides
    @_command
    @functools.wraps(work)
    def with_recipe(*args: Any, recipe_path: Path, overrides: tuple[str, ...], **options: Any) -> None:
        work(*args, recipe=_load_recipe(recipe_path, overrides), **options)

    return with_recipe


def _with_workers(work: Work) -> Work:
    """A command whose work is done by Dask workers, or by processes that Dask starts."""

    @NumWorkers
    @Scheduler
    @functools.wraps(work)
    def with_workers(*args: Any, num_workers: int | None, scheduler: str | None, console: Console, **options: Any) -> None:
        work(*args, workers=Workers(num_workers, scheduler, quiet=console.is_quiet), console=console, **options)

    return with_workers


def _load_recipe(path: Path, overrides: tuple[str, ...]) -> Recipe:
    from fastmix_data.recipe.load import load_recipe

    return load_recipe(path, overrides)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fastmix")
def main() -> None:
    """Find the data mixture of a training run with one small proxy run, and ship it.

    `fastmix demo` shows all of it on an embedded corpus. For your own: `fastmix init DIR` writes a recipe, `fastmix run RECIPE` does the
    rest. Every command does only what is missing, so one that was stopped is simply started again.
    """
    let_waiting_threads_sleep()


@main.command()
@NumRanks
@NumSearches
@Replace
@_recipe_command
@_with_workers
def run(recipe: Recipe, workers: Workers, num_ranks: int, num_seeds: int | None, replace: bool, console: Console) -> None:
    """Preprocess, search, emit and report in one go."""
    from pipelines import flow

    result = flow.run(recipe, workers=workers, num_ranks=num_ranks, num_seeds=num_seeds, replace=replace, say=console.say)
    console.result(*run_summary(result.mixture, result.manifest, result.report))


@main.command()
@click.option("--dir", "directory", type=PathType, default=Path("fastmix-demo"), show_default=True)
@Overrides
@NumWorkers
@NumRanks
@Replace
@_command
def demo(
    directory: Path, overrides: tuple[str, ...], num_workers: int | None, num_ranks: int, replace: bool, console: Console
) -> None:
    """Run everything on a corpus made from what every Python installation carries."""
    from pipelines import flow
    from pipelines.demo.corpus import write_sample_corpus
    from pipelines.report.page import report_pictures

    recipe_path = write_sample_corpus(directory)
    console.say(f"wrote a corpus and {recipe_path}")
    recipe, workers = _load_recipe(recipe_path, overrides), Workers(num_workers, quiet=console.is_quiet)
    result = flow.run(recipe, workers=workers, num_ranks=num_ranks, replace=replace, say=console.say)
    report_pictures(recipe.paths, directory / "pictures")
    console.result(*run_summary(result.mixture, result.manifest, result.report))


@main.command()
@Replace
@_recipe_command
@_with_workers
def preprocess(recipe: Recipe, workers: Workers, replace: bool, console: Console) -> None:
    """Tokenize the sources into shards and a catalog."""
    from fastmix_data.audit.inspection import format_inspection, inspect
    from pipelines.preprocess.plan import plan_preprocess
    from pipelines.preprocess.run import preprocess as work

    result = work(plan_preprocess(recipe), workers=workers, replace=replace)
    console.say(*result.warnings, result.message)
    contents = inspect(recipe.paths.catalog)
    console.result({"did_work": result.did_work, "warnings": list(result.warnings), **contents}, format_inspection(contents))


@main.command()
@NumRanks
@NumSearches
@Replace
@click.option("--local_rank", hidden=True, expose_value=False, help="Given by the deepspeed launcher, beside its environment.")
@_recipe_command
def search(recipe: Recipe, num_ranks: int, num_seeds: int | None, replace: bool, console: Console) -> None:
    """Learn the mixture: counts propose, a proxy's scores propose, and short trials decide.

    On several nodes, start it on each with a launcher: `torchrun --nnodes ... -m train.search RECIPE`, or
    `deepspeed --module train.search RECIPE`. Either takes the options of this command.
    """
    from train.search.plan import plan_search
    from train.search.search import search as work

    launched = launched_rank()
    if launched is not None and num_ranks > 1:
        raise RecipeError(
            f"--nproc {num_ranks}", "this process is a rank that a launcher started", "give the number to the launcher"
        )
    plan = plan_search(recipe)
    result = work(plan, num_seeds=num_seeds, num_ranks=num_ranks, launched=launched, replace=replace, quiet=console.is_quiet)
    console.say(*result.warnings, result.message)
    mixture, contents = result.mixture, {"did_work": result.did_work, "warnings": list(result.warnings)}
    console.result({**contents, **mixture.model_dump()}, "\n".join([mixture_table(mixture), *mixture_notes(mixture)]))
    if launched is not None and launched.world_size > 1:
        # The result is on disk and all ranks have met. Taking gloo's connections down while peers leave too has aborted a rank
        # on a busy machine, which a launcher reports as a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@main.command()
@click.option(
    "--methods",
    default="fastmix,trials,count,uniform,proportional,paper,doge,doremi,regmix:32,olmix:32,additive:32",
    show_default=True,
    help="Methods, with the number of proxies of a swarm; uniform is always among them.",
)
@click.option(
    "--seeds", "num_seeds", type=click.IntRange(1), default=3, show_default=True, help="Fresh proxies that confirm each mixture."
)
@Replace
@_recipe_command
@_with_workers
def compare(recipe: Recipe, workers: Workers, methods: str, num_seeds: int, replace: bool, console: Console) -> None:
    """Compare methods at their own search cost, each mixture confirmed by fresh proxies.

    fastmix is the recipe's search, trials what its trials say without the mixture of its scores, count where it starts by default; mde is
    the count without passages, paper FastMix's rule as published. doge and doremi train one proxy (and doremi a reference), mixmin a short
    one for each source; regmix:N, olmix:N and additive:N fit the losses of N proxies, which all targets share, and regmix-count:N those of
    N proxies around the target's count. Proxies and searches are kept, so a list with one more method costs only that method.
    """
    from pipelines.compare.run import compare as work
    from pipelines.compare.table import comparison_table
    from train.search.plan import plan_search

    result = work(plan_search(recipe), methods=methods, num_seeds=num_seeds, workers=workers, replace=replace)
    console.say(*result.notes, result.message)
    contents = {"did_work": result.did_work, "notes": list(result.notes)}
    console.result({**contents, **result.comparison.model_dump()}, comparison_table(result.comparison))


@main.command()
@click.argument("ratios_path", metavar="RATIOS", type=PathType)
@click.argument("metrics_path", metavar="METRICS", type=PathType)
@click.option(
    "--target", "targets", multiple=True, required=True, metavar="NAME", help="Column of METRICS; of several, their mean."
)
@click.option("--higher-is-better", is_flag=True, help="The targets are scores, not losses.")
@click.option("--cap", "caps", multiple=True, metavar="NAME=SHARE", help="Largest share of a source.")
@click.option(
    "--recipe", "recipe_path", type=PathType, help="Keep to the bounds and epoch caps of this recipe, of the same sources."
)
@click.option("--out", "output", type=PathType, help="File to write; mixture.json beside METRICS by default.")
@Replace
@_command
def fit(
    ratios_path: Path,
    metrics_path: Path,
    targets: tuple[str, ...],
    higher_is_better: bool,
    caps: tuple[str, ...],
    recipe_path: Path | None,
    output: Path | None,
    replace: bool,
    console: Console,
) -> None:
    """Find a mixture from runs of your own: a CSV of their mixtures and one of what was measured.

    Of several laws the one that predicts held-out runs best is taken, by cross-validation. `fastmix emit --mixture FILE` ships the answer.
    """
    from fastmix_data.workdir import SearchFolder
    from pipelines.fit.bounds import fit_bounds
    from pipelines.fit.fit_mixture import fit as work
    from pipelines.fit.swarm_table import read_swarm

    swarm = read_swarm(ratios_path, metrics_path, targets=targets)
    recipe = None if recipe_path is None else _load_recipe(recipe_path, ())
    bounds = fit_bounds(swarm.sources, caps=caps, recipe=recipe)
    output = output or SearchFolder(metrics_path.parent).mixture
    result = work(
        swarm,
        targets=targets,
        constraints=bounds,
        higher_is_better=higher_is_better,
        tables=(ratios_path, metrics_path),
        output=output,
        replace=replace,
    )
    console.say(*result.notes, result.message)
    contents = {"did_work": result.did_work, "notes": list(result.notes), "mixture_path": str(output)}
    console.result({**contents, **result.mixture.model_dump()}, fit_summary(result.mixture))


@main.command()
@click.option("--mixture", "mixture_path", type=PathType, help="A mixture of your own; the search's by default.")
@Replace
@_recipe_command
def emit(recipe: Recipe, mixture_path: Path | None, replace: bool, console: Console) -> None:
    """Turn mixture and token budget into a token-exact manifest."""
    from fastmix_data.audit.inspection import format_inspection, inspect
    from pipelines import flow

    manifest = flow.emit(recipe, mixture_path=mixture_path, replace=replace)
    console.say(manifest.message)
    contents = inspect(manifest.path)
    console.result({"did_work": manifest.did_work, **contents}, format_inspection(contents))


@main.command()
@click.argument("manifest_path", metavar="MANIFEST", type=PathType)
@click.option("--to", "target", type=click.Choice(["webdataset"]), required=True, help="Whose format to write.")
@click.option("--out", "directory", type=PathType, help="Folder to write; MANIFEST/../export-FORMAT by default.")
@click.option(
    "--files",
    type=click.Choice(["reference", "hardlink", "copy"]),
    default="reference",
    show_default=True,
    help="Whole shards: name them where they are, or put them into the folder.",
)
@Replace
@_command
def export(manifest_path: Path, target: str, directory: Path | None, files: Any, replace: bool, console: Console) -> None:
    """Write a manifest in the format of a production trainer."""
    from fastmix_data.exports.webdataset import export_webdataset

    folder = manifest_path if manifest_path.is_dir() else manifest_path.parent
    directory = directory or folder.parent / f"export-{target}"
    exported = export_webdataset(manifest_path, directory, files=files, replace=replace, quiet=console.is_quiet)
    console.result(exported.as_dict(), exported.message)


@main.command()
@click.argument("path", metavar="PATH", type=PathType)
@_command
def verify(path: Path, console: Console) -> None:
    """Re-hash a shard, catalog, manifest or workdir, and list all that is wrong."""
    from fastmix_data.audit.verify import verify as work

    report = work(path, quiet=console.is_quiet)
    console.result(report.as_dict(), str(report))
    if not report.ok:
        sys.exit(2)


@main.command()
@click.argument("path", metavar="PATH", type=PathType)
@click.option("--block", type=click.IntRange(0), help="Show the text and documents of this block of a shard.")
@_command
def inspect(path: Path, block: int | None, console: Console) -> None:
    """Say what is in a shard, catalog, mixture or manifest."""
    from fastmix_data.audit.inspection import format_inspection
    from fastmix_data.audit.inspection import inspect as work

    contents = work(path, block=block)
    console.result(contents, format_inspection(contents))


@main.command()
@click.option("--out", "output", type=PathType, help="File to write; WORKDIR/report.html by default.")
@_recipe_command
def report(recipe: Recipe, output: Path | None, console: Console) -> None:
    """Write one self-contained HTML page about a run."""
    from pipelines.report.page import write_report

    written = write_report(recipe.paths, output)
    console.result({"report": str(written)}, f"wrote {written}")


@main.command()
@click.argument("recipe_path", metavar="[RECIPE]", required=False, type=PathType)
@Overrides
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, from which editors complete.")
@_command
def recipe(recipe_path: Path | None, overrides: tuple[str, ...], schema: bool, console: Console) -> None:
    """Check a recipe and print it with every default filled in."""
    import json

    from fastmix_data.recipe.recipe import Recipe

    if schema:
        content = Recipe.model_json_schema()
    elif recipe_path is None:
        raise click.UsageError("give a RECIPE to check, or --schema")
    else:
        content = _load_recipe(recipe_path, overrides).model_dump(mode="json")
    console.result(content, json.dumps(content, indent=2))


@main.command()
@click.argument("directory", metavar="DIR", type=PathType)
@click.option("--out", "output", type=PathType, help="Recipe to write; DIR/recipe.yaml by default.")
@click.option("--force", is_flag=True, help="Overwrite an existing recipe.")
@_command
def init(directory: Path, output: Path | None, force: bool, console: Console) -> None:
    """Write a commented recipe for the corpora found in a folder."""
    from pipelines.init_recipe import write_recipe

    written = shown(str(write_recipe(directory, output=output, force=force)))
    console.result({"recipe": written}, f"wrote {written}; look it over, then: fastmix run {shlex.quote(str(written))}")


if __name__ == "__main__":  # `python -m train.search` becomes this
    main(prog_name="fastmix")
