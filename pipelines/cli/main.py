"""The group of all commands."""

from __future__ import annotations

import click

from fastmix_data.machine import let_waiting_threads_sleep
from pipelines.cli import find, launch, manifest, ship, start, watch


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fastmix")
def main() -> None:
    """Find the data mixture of a training run with one small proxy run, and ship it.

    `fastmix demo` shows all of it on an embedded corpus. For your own: `fastmix init DIR` writes a recipe, `fastmix run RECIPE` does the
    rest. Every command does only what is missing, so one that was stopped is simply started again.
    """
    let_waiting_threads_sleep()


for command in (
    start.run,
    start.demo,
    find.preprocess,
    find.search,
    watch.watch,
    find.compare,
    find.fit,
    launch.launch,
    ship.emit,
    ship.export,
    ship.materialize,
    ship.verify,
    ship.inspect,
    manifest.manifest,
    manifest.trace,
    start.report,
    start.recipe,
    start.init,
):
    main.add_command(command)
