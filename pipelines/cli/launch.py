"""The command that gives a recipe to a cluster's queue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastmix_data.errors import FastmixError
from pipelines.cli.options import NumSearches, PathType, command, read_recipe
from pipelines.console import Console

if TYPE_CHECKING:
    from pipelines.slurm.jobs import Job

_Count = click.IntRange(1)


@click.command()
@click.argument("recipe_path", metavar="RECIPE", type=PathType)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe, in every job.")
@click.option("--slurm", is_flag=True, help="The queue; there is no other yet.")
@click.option("--nodes", type=_Count, default=1, show_default=True, help="Nodes of the search, and of compare.")
@click.option("--gpus-per-node", type=click.IntRange(0), default=1, show_default=True, help="0 trains on CPUs.")
@click.option("--ranks-per-node", type=_Count, help="One for each GPU by default.")
@click.option("--cpus-per-rank", type=_Count, default=4, show_default=True)
@click.option("--preprocess-nodes", type=_Count, default=1, show_default=True)
@click.option("--preprocess-cpus", type=_Count, default=8, show_default=True, help="Cores on each of them.")
@click.option("--partition", metavar="NAME", help="For jobs that train, and for the others if --cpu-partition is not given.")
@click.option("--cpu-partition", metavar="NAME", help="For preprocess and for what comes after the search.")
@click.option("--account", metavar="NAME")
@click.option("--qos", metavar="NAME")
@click.option(
    "--time", "time_limit", metavar="TIME", help="Limit of each job, as 4:00:00; a search that needs longer queues again."
)
@click.option("--sbatch", "extra", multiple=True, metavar="OPTION", help="Any other option of sbatch, as --sbatch=--exclusive.")
@click.option("--setup", multiple=True, metavar="LINE", help="Shell line that each job begins with, as 'module load cuda'.")
@NumSearches
@click.option("--compare", "methods", metavar="METHODS", help="Also compare these methods, as `fastmix compare --methods`.")
@click.option("--dry-run", is_flag=True, help="Print the scripts and queue nothing.")
@command
def launch(
    recipe_path: Path,
    overrides: tuple[str, ...],
    slurm: bool,
    nodes: int,
    gpus_per_node: int,
    ranks_per_node: int | None,
    cpus_per_rank: int,
    preprocess_nodes: int,
    preprocess_cpus: int,
    partition: str | None,
    cpu_partition: str | None,
    account: str | None,
    qos: str | None,
    time_limit: str | None,
    extra: tuple[str, ...],
    setup: tuple[str, ...],
    num_seeds: int | None,
    methods: str | None,
    dry_run: bool,
    console: Console,
) -> None:
    """Queue preprocess, search, emit and report on a cluster, each to start when the one before it has succeeded.

    Scripts and logs are in WORKDIR/slurm. Jobs that are preempted or reach their limit queue again, and go on from what is saved.
    """
    from pipelines.flow import check_search_sections
    from pipelines.slurm.jobs import Commands, Resources, plan_jobs, with_defaults
    from pipelines.slurm.submit import submit, write_scripts

    if not slurm:
        raise FastmixError("fastmix launch", "no queue is named", "give --slurm")
    recipe = read_recipe(recipe_path.resolve(), overrides)
    every = {"--account": account, "--qos": qos, "--time": time_limit}
    common = tuple(f"{name}={value}" for name, value in every.items() if value is not None)
    partitions = [f"--partition={name}" if name else "" for name in (partition, cpu_partition or partition)]
    resources = with_defaults(
        Resources(
            nodes,
            gpus_per_node,
            ranks_per_node or 0,
            cpus_per_rank,
            preprocess_nodes,
            preprocess_cpus,
            options=(*common, *extra),
            gpu_options=tuple(filter(None, partitions[:1])),
            cpu_options=tuple(filter(None, partitions[1:])),
            setup=setup,
        )
    )
    check_search_sections(recipe, num_ranks=resources.num_ranks)
    commands = Commands(
        program=(sys.executable, "-m", "pipelines.cli"),
        recipe=(str(recipe_path.resolve()), *(word for override in overrides for word in ("--set", override))),
        search=("--seeds", str(num_seeds)) if num_seeds is not None else (),
        compare=("--methods", methods) if methods is not None else None,
        exports=bool(recipe.exports),
    )
    folder = recipe.paths.slurm
    jobs = plan_jobs(commands, resources, logs=folder)
    if dry_run:
        console.result({"scripts": {job.name: job.script for job in jobs}}, "\n".join(map(_shown, jobs)))
        return
    write_scripts(jobs, folder)
    numbers = submit(jobs, folder)
    lines = [f"{numbers[job.name]}  {job.name}" + (f" after {', '.join(job.after)}" if job.after else "") for job in jobs]
    console.result(
        {"jobs": numbers, "folder": str(folder)}, "\n".join([*lines, f"scripts and logs: {folder}; `squeue --me` shows them"])
    )


def _shown(job: Job) -> str:
    after = f", after {', '.join(job.after)}" if job.after else ""
    return f"# ---- {job.name}.sh{after}\n{job.script}"
