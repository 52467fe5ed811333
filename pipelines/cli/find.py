"""Commands on the way from corpora to a mixture."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmix_data.errors import RecipeError
from fastmix_data.machine import Workers, launched_rank
from pipelines.cli.options import (
    NumRanks,
    NumSearches,
    PathType,
    Replace,
    Sinks,
    command,
    read_recipe,
    recipe_command,
    with_workers,
)
from pipelines.console import Console, fit_summary, mixture_notes, mixture_table

if TYPE_CHECKING:
    from fastmix_data.recipe.recipe import Recipe
    from train.ranks.meeting import Meeting


@click.command()
@click.option("--all", "is_whole", is_flag=True, help="Tokenize all of the sources, where the recipe asks for a sample.")
@Replace
@recipe_command
@with_workers
def preprocess(recipe: Recipe, workers: Workers, is_whole: bool, replace: bool, console: Console) -> None:
    """Tokenize the sources into shards and a catalog."""
    from fastmix_data.audit.inspection import format_inspection, inspect
    from pipelines.preprocess.plan import plan_preprocess
    from pipelines.preprocess.run import preprocess as work

    result = work(plan_preprocess(recipe), workers=workers, replace=replace, is_whole=is_whole)
    console.say(*result.warnings, result.message)
    contents = inspect(recipe.paths.catalog)
    console.result({"did_work": result.did_work, "warnings": list(result.warnings), **contents}, format_inspection(contents))


@click.command()
@NumRanks
@NumSearches
@Sinks
@click.option("--plan", "is_plan", is_flag=True, help="Print steps, memory, time and cost of the search, and start nothing.")
@click.option("--gpu", help="Card to plan for, such as H100; this machine's device by default.")
@click.option("--price", type=click.FloatRange(0), help="Of an hour of one card, to plan the cost.")
@Replace
@click.option("--local_rank", hidden=True, expose_value=False, help="Given by the deepspeed launcher, beside its environment.")
@functools.partial(recipe_command, on_ranks=True)
def search(
    recipe: Recipe,
    num_ranks: int,
    num_seeds: int | None,
    sinks: tuple[Any, ...],
    is_plan: bool,
    gpu: str | None,
    price: float | None,
    replace: bool,
    meeting: Meeting | None,
    console: Console,
) -> None:
    """Learn the mixture: counts propose, a proxy's scores propose, and short trials decide.

    On several nodes, start it on each with a launcher: `torchrun --nnodes ... -m train.search RECIPE`,
    `deepspeed --module train.search RECIPE` or `srun fastmix search RECIPE`. Each takes the options of this command.
    """
    from train.recording.search_recorder import Told
    from train.search.plan import plan_search
    from train.search.search import search as work

    if num_ranks > 1 and launched_rank() is not None:
        raise RecipeError(
            f"--nproc {num_ranks}", "this process is a rank that a launcher started", "give the number to the launcher"
        )
    plan = plan_search(recipe)
    if not is_plan and (gpu is not None or price is not None):
        raise click.UsageError("--gpu and --price go with --plan")
    if is_plan:
        from pipelines.outlook import format_outlook, outlook

        found = outlook(plan, num_ranks=num_ranks, gpu=gpu)
        console.result(found.as_dict(price=price), format_outlook(found, price=price))
        return
    told = Told(sinks=sinks, logs=plan.folder)
    result = work(
        plan, num_seeds=num_seeds, num_ranks=num_ranks, launched=meeting, replace=replace, quiet=console.is_quiet, told=told
    )
    console.say(*result.warnings, result.message)
    mixture, contents = result.mixture, {"did_work": result.did_work, "warnings": list(result.warnings)}
    console.result({**contents, **mixture.model_dump()}, "\n".join([mixture_table(mixture), *mixture_notes(mixture)]))


@click.command()
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
@recipe_command
@with_workers
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


@click.command()
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
@command
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
    recipe = None if recipe_path is None else read_recipe(recipe_path, ())
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
