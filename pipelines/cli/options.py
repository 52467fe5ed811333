"""What commands of `fastmix` share: options, and how mistakes are told."""

from __future__ import annotations

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmix_data.errors import FastmixError, Interrupted
from fastmix_data.machine import LaunchedRank, Workers, launched_rank, prepare_rank
from pipelines.console import Console

if TYPE_CHECKING:
    from fastmix_data.recipe.recipe import Recipe
    from train.ranks.meeting import Meeting

_SECONDS_TO_HEAR = 3.0  # longer than ranks take to look
Work = Callable[..., None]
PathType = click.Path(path_type=Path)
Replace = click.option("--replace", is_flag=True, help="Replace artefacts made from another recipe or other data.")
NumWorkers = click.option(
    "--workers",
    "num_workers",
    type=click.IntRange(1),
    help="Dask worker processes; all cores by default, for compare all GPUs where there are any.",
)
Scheduler = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Use a running Dask cluster, as tcp://host:port, or `srun` for one worker on each task of this SLURM allocation.",
)
NumRanks = click.option("--nproc", "num_ranks", type=click.IntRange(1), default=1, help="Training ranks on this machine.")
NumSearches = click.option(
    "--seeds",
    "num_seeds",
    type=click.IntRange(1),
    help="Searches to average, with training.seed and the numbers after it; 1 unless more are finished.",
)
Sinks = click.option(
    "--log",
    "sinks",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb"]),
    help="Send the search's figures there too; repeat it for both. wandb stays offline unless WANDB_MODE says otherwise.",
)
Overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe, as training.seed=1."
)


class Bytes(click.ParamType[int]):
    """A size as `64MiB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from fastmix_data.units import parse_bytes  # pydantic takes half of the time of --help

        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class TokenCount(click.ParamType[int]):
    """A count of tokens as `1.5B`."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from fastmix_data.units import parse_count  # as above

        try:
            return parse_count(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def command(work: Work, *, on_ranks: bool = False) -> Work:
    """Give a command --json and --debug, and turn what users can put right into one line and exit code 2.

    Args:
        on_ranks: whether a launcher may start it on many ranks; it is then given their `meeting`, None where it is alone.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @functools.wraps(work)
    def guarded(*args: Any, as_json: bool, debug: bool, **options: Any) -> None:
        console, launched = Console(as_json=as_json), None
        try:
            launched = launched_rank() if on_ranks else None
            console = Console(as_json=as_json, rank=launched.rank if launched is not None else 0)
            with _meeting(launched) as meeting:
                work(*args, console=console, **options, **({"meeting": meeting} if on_ranks else {}))
        except (FastmixError, KeyboardInterrupt, OSError) as error:
            if debug:
                traceback.print_exc()
            if isinstance(error, KeyboardInterrupt):
                error = Interrupted("", "interrupted", "what is finished is kept, and the same command goes on from there")
            console.fail(error)
            _end(2, launched)
        except BaseException:
            if launched is not None and launched.world_size > 1:
                traceback.print_exc()
                _end(1, launched)
            raise
        _end(0, launched)

    return guarded


def _meeting(launched: LaunchedRank | None) -> AbstractContextManager[Meeting | None]:
    """All ranks of a launched run; nothing where there is one process."""
    if launched is None or launched.world_size == 1:
        return nullcontext()
    prepare_rank(launched)
    from train.ranks.together import together

    return together(launched)


def _end(code: int, launched: LaunchedRank | None) -> None:
    """End the process, of several ranks without taking connections down: peers leave too, or are gone, and gloo aborts over it.

    Where rank 0 keeps the store, others look there for the reason of the failure.
    """
    if launched is not None and launched.world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if code and launched.rank == 0:
            time.sleep(_SECONDS_TO_HEAR)
        os._exit(code)
    if code:
        sys.exit(code)


def recipe_command(work: Work, *, on_ranks: bool = False) -> Work:
    """A command that is given a recipe, as file and overrides, and gets it read as `recipe`; see `command`."""

    @click.argument("recipe_path", metavar="RECIPE", type=PathType)
    @Overrides
    @functools.partial(command, on_ranks=on_ranks)
    @functools.wraps(work)
    def with_recipe(*args: Any, recipe_path: Path, overrides: tuple[str, ...], **options: Any) -> None:
        work(*args, recipe=read_recipe(recipe_path, overrides), **options)

    return with_recipe


def with_workers(work: Work) -> Work:
    """A command whose work is done by Dask workers, or by processes that Dask starts."""

    @NumWorkers
    @Scheduler
    @functools.wraps(work)
    def spread(*args: Any, num_workers: int | None, scheduler: str | None, console: Console, **options: Any) -> None:
        work(*args, workers=Workers(num_workers, scheduler, quiet=console.is_quiet), console=console, **options)

    return spread


def read_recipe(path: Path, overrides: tuple[str, ...]) -> Recipe:
    from fastmix_data.recipe.load import load_recipe

    return load_recipe(path, overrides)
