"""Batch scripts: bash reads them, and every word of a command arrives as it was given. Submission runs in scripts/slurm_check.sh."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fastmix_data.errors import FastmixError
from pipelines.slurm.jobs import Commands, Job, Resources, plan_jobs, with_defaults

ODD = ("a b", "$HOME", "x;y", "'", '"', "`id`", "", "ü*?")


def jobs(folder: Path, *, compare: tuple[str, ...] | None = None, **resources: object) -> dict[str, Job]:
    given = {
        "nodes": 2,
        "gpus_per_node": 8,
        "ranks_per_node": 0,
        "cpus_per_rank": 4,
        "preprocess_nodes": 1,
        "preprocess_cpus": 16,
    }
    commands = Commands((str(folder / "program"),), ("recipe.yaml", *ODD), ("--seeds", "2"), compare, exports=True)
    planned = plan_jobs(commands, with_defaults(Resources(**{**given, **resources})), logs=folder)  # type: ignore[arg-type]
    return {job.name: job for job in planned}


def ran(script: str, folder: Path, *, code: int = 0) -> list[list[str]]:
    """The words of each command of a script, that bash runs beside programs that write down what they are given."""
    log = str(folder / "log")
    for name in ("program", "srun", "scontrol"):
        body = (
            f'#!/usr/bin/env python3\nimport json, sys\nprint(json.dumps(["{name}", *sys.argv[1:]]), file=open({log!r}, "a"))\n'
        )
        path = folder / name
        path.write_text(body + (f"sys.exit({code})\n" if name == "program" else ""))
        path.chmod(0o755)
    finished = subprocess.run(["bash", "-c", script], env={"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}, timeout=30)
    assert finished.returncode == code
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def options(job: Job) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in job.script.splitlines() if line.startswith("#SBATCH ")]


def test_commands_arrive_word_by_word(tmp_path: Path) -> None:
    planned = jobs(tmp_path)
    assert ran(planned["ship"].script, tmp_path) == [
        ["program", command, "recipe.yaml", *ODD] for command in ("emit", "export", "report")
    ]
    (tmp_path / "log").unlink()
    (step,) = ran(planned["search"].script, tmp_path)
    assert step[0] == "srun" and step[step.index("recipe.yaml") :] == ["recipe.yaml", *ODD, "--seeds", "2"]


def test_a_failed_command_is_the_jobs_failure_and_ends_it(tmp_path: Path) -> None:
    assert len(ran(jobs(tmp_path)["ship"].script, tmp_path, code=2)) == 1


def test_jobs_ask_for_what_the_user_said_and_wait_for_each_other(tmp_path: Path) -> None:
    planned = jobs(
        tmp_path / "50% off", compare=("--methods", "uniform"), options=("--time=1:00:00",), gpu_options=("--partition=gpu",)
    )
    assert {name: job.after for name, job in planned.items()} == {
        "preprocess": (),
        "search": ("preprocess",),
        "compare": ("search",),
        "ship": ("search", "compare"),
    }
    asked = options(planned["search"])
    for option in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=gpu", "--time=1:00:00", "--requeue"):
        assert option in asked
    assert f'--output="{tmp_path}/50%% off/search-%j.log"' in asked
    assert "--partition=gpu" not in options(planned["preprocess"]) and "--cpus-per-task=16" in options(planned["preprocess"])
    assert "--scheduler srun" in planned["compare"].script


@pytest.mark.parametrize("option", ["-p gpu", "--comment=a\nrm -rf x", "--comment=a b", "--wrap='x'"])
def test_an_option_that_would_be_more_than_one_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(FastmixError, match=r"--name=value.*--setup"):
        jobs(tmp_path, options=(option,))
