"""Jobs given to sbatch, each to start when those before it have succeeded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fastmix_data.errors import FastmixError
from fastmix_data.messages import first_line
from pipelines.slurm.jobs import Job


def script_path(job: Job, folder: Path) -> Path:
    """Where a job's script lies."""
    return folder / f"{job.name}.sh"


def write_scripts(jobs: Sequence[Job], folder: Path) -> None:
    """Write the script of each job; sbatch keeps a copy of its own, so queued jobs are not changed by it."""
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        script_path(job, folder).write_text(job.script)


def submit(jobs: Sequence[Job], folder: Path) -> dict[str, str]:
    """Queue jobs whose scripts are written; SLURM's number of each, by name.

    Raises:
        FastmixError: sbatch refused one; those that were queued before it are cancelled.
    """
    if shutil.which("sbatch") is None:
        raise FastmixError("sbatch", "there is no such command here", "start this on a login node, or look at it with --dry-run")
    numbers: dict[str, str] = {}
    for job in jobs:
        after = ":".join(numbers[name] for name in job.after)
        command = ["sbatch", "--parsable", *([f"--dependency=afterok:{after}"] if after else [])]
        command.append(str(script_path(job, folder)))
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode:
            if numbers:
                subprocess.run(["scancel", *numbers.values()], capture_output=True)
            reason = first_line(RuntimeError(finished.stderr.removeprefix("sbatch: ").removeprefix("error: ")))
            raise FastmixError(
                f"sbatch {script_path(job, folder)}", reason, "no job of this call is queued; mend it and call again"
            )
        numbers[job.name] = finished.stdout.strip().split(";")[0]
    return numbers
