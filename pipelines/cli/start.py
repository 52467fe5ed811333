"""Commands that begin with a folder of data or a recipe and do everything."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmix_data.machine import Workers
from fastmix_data.messages import shown
from pipelines.cli.options import (
    NumRanks,
    NumSearches,
    NumWorkers,
    Overrides,
    PathType,
    Replace,
    Sinks,
    command,
    read_recipe,
    recipe_command,
    with_workers,
)
from pipelines.console import Console, run_summary

if TYPE_CHECKING:
    from fastmix_data.recipe.recipe import Recipe


@click.command()
@NumRanks
@NumSearches
@Sinks
@Replace
@recipe_command
@with_workers
def run(
    recipe: Recipe,
    workers: Workers,
    num_ranks: int,
    num_seeds: int | None,
    sinks: tuple[Any, ...],
    replace: bool,
    console: Console,
) -> None:
    """Preprocess, search, emit, report and export in one go."""
    from pipelines import flow

    result = flow.run(
        recipe, workers=workers, num_ranks=num_ranks, num_seeds=num_seeds, sinks=sinks, replace=replace, say=console.say
    )
    console.result(*run_summary(result.mixture, result.manifest, result.report, result.exports))


@click.command()
@click.option("--dir", "directory", type=PathType, default=Path("fastmix-demo"), show_default=True)
@Overrides
@NumWorkers
@NumRanks
@Replace
@command
def demo(
    directory: Path, overrides: tuple[str, ...], num_workers: int | None, num_ranks: int, replace: bool, console: Console
) -> None:
    """Run everything on a corpus made from what every Python installation carries."""
    from pipelines import flow
    from pipelines.demo.corpus import write_sample_corpus
    from pipelines.report.page import report_pictures

    recipe_path = write_sample_corpus(directory)
    console.say(f"wrote a corpus and {recipe_path}")
    recipe, workers = read_recipe(recipe_path, overrides), Workers(num_workers, quiet=console.is_quiet)
    result = flow.run(recipe, workers=workers, num_ranks=num_ranks, replace=replace, say=console.say)
    report_pictures(recipe.paths, directory / "pictures")
    console.result(*run_summary(result.mixture, result.manifest, result.report, result.exports))


@click.command()
@click.argument("recipe_path", metavar="[RECIPE]", required=False, type=PathType)
@Overrides
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, from which editors complete.")
@command
def recipe(recipe_path: Path | None, overrides: tuple[str, ...], schema: bool, console: Console) -> None:
    """Check a recipe and print it with every default filled in."""
    import json

    from fastmix_data.recipe.recipe import Recipe

    if schema:
        content = Recipe.model_json_schema()
    elif recipe_path is None:
        raise click.UsageError("give a RECIPE to check, or --schema")
    else:
        content = read_recipe(recipe_path, overrides).model_dump(mode="json")
    console.result(content, json.dumps(content, indent=2))


@click.command()
@click.argument("directory", metavar="DIR", type=PathType)
@click.option("--out", "output", type=PathType, help="Recipe to write; DIR/recipe.yaml by default.")
@click.option("--force", is_flag=True, help="Overwrite an existing recipe.")
@command
def init(directory: Path, output: Path | None, force: bool, console: Console) -> None:
    """Write a commented recipe for the corpora found in a folder."""
    from pipelines.init_recipe import write_recipe

    written = shown(str(write_recipe(directory, output=output, force=force)))
    console.result({"recipe": written}, f"wrote {written}; look it over, then: fastmix run {shlex.quote(str(written))}")


@click.command()
@click.option("--out", "output", type=PathType, help="File to write; WORKDIR/report.html by default.")
@recipe_command
def report(recipe: Recipe, output: Path | None, console: Console) -> None:
    """Write one self-contained HTML page about a run."""
    from pipelines.report.page import write_report

    written = write_report(recipe.paths, output)
    console.result({"report": str(written)}, f"wrote {written}")
