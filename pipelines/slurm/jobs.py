"""The flow as jobs of SLURM that wait for each other: what each asks for, and its script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastmix_data.errors import FastmixError

# A search notes the wish to stop at its next update, and a save of a large proxy takes a while.
SECONDS_BEFORE_LIMIT = 300
_PLAIN = re.compile(r"[\w.,:@+=/%\[\]*&|()-]+")


@dataclass(frozen=True)
class Resources:
    """What the user says of the cluster.

    Attributes:
        nodes, gpus_per_node, ranks_per_node, cpus_per_rank: of the search, and of the comparison.
        preprocess_nodes, preprocess_cpus: nodes that tokenize, and cores on each.
        options: for every job, as `--partition=gpu`.
        gpu_options, cpu_options: for the jobs that train, and for the others.
        setup: shell lines that each job begins with.
    """

    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    cpus_per_rank: int
    preprocess_nodes: int
    preprocess_cpus: int
    options: tuple[str, ...] = ()
    gpu_options: tuple[str, ...] = ()
    cpu_options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    @property
    def num_ranks(self) -> int:
        """Ranks of the search."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Commands:
    """How `fastmix` is called in jobs.

    Attributes:
        program: as `python -m pipelines.cli`, in words.
        recipe: the recipe and its overrides, in words.
        search: options of the search alone.
        compare: options of the comparison; None for none.
        exports: whether the recipe asks for other trainers' formats.
    """

    program: tuple[str, ...]
    recipe: tuple[str, ...]
    search: tuple[str, ...]
    compare: tuple[str, ...] | None
    exports: bool

    def line(self, command: str, *options: str) -> str:
        """A shell line, with every word quoted as it needs."""
        return shlex.join([*self.program, command, *self.recipe, *options])


@dataclass(frozen=True)
class Job:
    """A batch job.

    Attributes:
        after: names of the jobs that must have succeeded.
        script: for sbatch.
    """

    name: str
    after: tuple[str, ...]
    script: str


def plan_jobs(commands: Commands, resources: Resources, *, logs: Path) -> list[Job]:
    """Jobs in the order of their submission.

    Args:
        logs: folder of what jobs print; absolute.

    Raises:
        FastmixError: an option or the folder cannot stand in a batch script.
    """
    for option in (*resources.options, *resources.gpu_options, *resources.cpu_options):
        check_option(option)
    training = (*resources.gpu_options, *_gpus(resources))
    shape = (f"--nodes={resources.nodes}", f"--ntasks-per-node={resources.ranks_per_node}")
    ranks = (*shape, f"--cpus-per-task={resources.cpus_per_rank}", *training)
    step = f"srun --kill-on-bad-exit=1 --cpus-per-task={resources.cpus_per_rank} "
    script = _Script(resources, logs)
    jobs = [
        _preprocess(commands, resources, script),
        Job("search", ("preprocess",), script.text("search", ranks, [step + commands.line("search", *commands.search)])),
    ]
    before_report: tuple[str, ...] = ("search",)
    if commands.compare is not None:
        spread = ("--scheduler", "srun") if resources.num_ranks > 1 else ()
        compared = [commands.line("compare", *commands.compare, *spread)]
        jobs.append(Job("compare", ("search",), script.text("compare", ranks, compared)))
        before_report = ("search", "compare")
    last = ["emit", *(["export"] if commands.exports else []), "report"]
    one_core = ("--nodes=1", "--ntasks=1", f"--cpus-per-task={resources.preprocess_cpus}", *resources.cpu_options)
    jobs.append(Job("ship", before_report, script.text("ship", one_core, [commands.line(command) for command in last])))
    return jobs


def _gpus(resources: Resources) -> tuple[str, ...]:
    return (f"--gpus-per-node={resources.gpus_per_node}",) if resources.gpus_per_node else ()


def _preprocess(commands: Commands, resources: Resources, script: _Script) -> Job:
    nodes, cpus = resources.preprocess_nodes, resources.preprocess_cpus
    if nodes > 1:
        asked, spread = ("--cpus-per-task=1", f"--ntasks-per-node={cpus}"), ("--scheduler", "srun")
    else:
        asked, spread = (f"--cpus-per-task={cpus}", "--ntasks-per-node=1"), ("--workers", str(cpus))
    lines = [commands.line("preprocess", *spread)]
    return Job("preprocess", (), script.text("preprocess", (f"--nodes={nodes}", *asked, *resources.cpu_options), lines))


@dataclass(frozen=True)
class _Script:
    """What scripts share."""

    resources: Resources
    logs: Path

    def text(self, name: str, asked: Sequence[str], lines: Sequence[str]) -> str:
        """A batch script that does the lines after each other."""
        log = (f"--job-name=fastmix-{name}", f"--output={_quoted_path(self.logs, name)}", "--open-mode=append")
        queueing = ("--requeue", f"--signal=B:USR1@{SECONDS_BEFORE_LIMIT}", "--kill-on-invalid-dep=yes")
        header = "".join(f"#SBATCH {option}\n" for option in (*log, *queueing, *asked, *self.resources.options))
        steps = "".join(f"run {line}\n" for line in lines)
        return _SCRIPT.format(header=header, setup="".join(f"{line}\n" for line in self.resources.setup), steps=steps)


# Bash answers a signal only between commands, hence `&` and `wait`, which a signal interrupts.
_SCRIPT = """\
#!/usr/bin/env bash
{header}set -e
{setup}set +e
# SLURM signals this script some minutes before the time limit. The command hears of it, keeps what it has and ends, and the job queues
# again; the same command then goes on. Preempted jobs, and those of a node that failed, are queued again by SLURM itself.
stopped=
trap 'stopped=1; kill -USR1 "$command" 2>/dev/null' USR1
run() {{
  "$@" &
  command=$!
  wait "$command"
  code=$?
  while [ "$code" -gt 128 ] && kill -0 "$command" 2>/dev/null; do
    wait "$command"
    code=$?
  done
  if [ "$code" -ne 0 ] && [ -n "$stopped" ]; then
    echo "stopped before the time limit; the job goes on when it starts again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  [ "$code" -eq 0 ] || exit "$code"
}}
{steps}"""


def check_option(option: str) -> None:
    """Refuse what would not be one option of one line of a batch script.

    Raises:
        FastmixError: names it.
    """
    if not option.startswith("--") or not _PLAIN.fullmatch(option):
        problem = "it is no option of sbatch that can stand in a script: --name=value, without blanks or quotes"
        raise FastmixError(option.splitlines()[0] if option else "''", problem, "put what is longer into --setup")


def _quoted_path(logs: Path, name: str) -> str:
    """The log's path as sbatch reads it: in quotes, with a number for the job; a percent sign of the path's own is doubled."""
    text = str(logs)
    if not text.isprintable() or set(text) & set("\"\\'"):
        raise FastmixError(
            text, "sbatch cannot write a log there, for the quotes or backslashes in its name", "use another workdir"
        )
    return f'"{text.replace("%", "%%")}/{name}-%j.log"'


def with_defaults(resources: Resources) -> Resources:
    """A rank for each GPU where no number of ranks was given, or one where there is no GPU."""
    return resources if resources.ranks_per_node else replace(resources, ranks_per_node=resources.gpus_per_node or 1)
