"""The command that looks on while a search runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipelines.cli.options import recipe_command
from pipelines.console import Console

if TYPE_CHECKING:
    from fastmix_data.recipe.recipe import Recipe


@click.command()
@click.option("--once", is_flag=True, help="Say how far the search is, and end; --json does so too.")
@click.option(
    "--report",
    "report_seconds",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Write WORKDIR/report.html anew so often; a browser that shows it follows.",
)
@recipe_command
def watch(recipe: Recipe, once: bool, report_seconds: float | None, console: Console) -> None:
    """Watch a search: mixture, losses, speed, time left and trials, live in a terminal.

    It reads files only: from any machine that sees the workdir, before the search begins and after it has ended.
    """
    from pipelines.watch.follow import SearchFollower
    from pipelines.watch.run import watch as work

    once = once or console.as_json
    if once and report_seconds is not None:
        raise click.UsageError("--report goes with a watch that lasts; `fastmix report` writes the page once")
    if not once:
        work(recipe.paths, report_seconds=report_seconds)
        return
    snapshot = SearchFollower(recipe.paths.search).look()
    console.result(snapshot.as_dict(), snapshot.text())
