"""Run by scripts/slurm_check.sh: the flow as jobs of a real SLURM, its search stopped twice, beside an undisturbed one."""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from folders import copied, prepare, trajectory
from hosts import Host, can_make_hosts, two_hosts
from slurm import missing_for_slurm, slurm_cluster

from fastmix_data.shards.catalog import load_catalog
from fastmix_data.text_table import aligned
from fastmix_data.workdir import Workdir

_TIMEOUT_S = 900
# Names that a script has to quote.
_FOLDER = "a run, 100% safe; $HOME"


def main() -> int:
    """The exit code."""
    problem = can_make_hosts() or missing_for_slurm()
    if problem:
        print(f"SLURM cannot be tried here: {problem}")
        return 77
    with tempfile.TemporaryDirectory(prefix="fastmix-slurm-") as folder, two_hosts() as hosts:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        corpus = prepare(Path(folder), token_budget="24K")
        run = copied(corpus, _FOLDER, with_shards=False)
        with slurm_cluster(Path(folder) / "cluster", hosts) as environment:
            cluster = Cluster(hosts[0], run, environment)
            jobs = cluster.launch()
            disturb(cluster, jobs["search"])
            cluster.wait("the last job's end", lambda: cluster.state(jobs["ship"]) not in ("PENDING", "RUNNING"))
            print(cluster.table(jobs))
        return int(not is_right(run, corpus))


@dataclass(frozen=True)
class Cluster:
    """SLURM's commands on its first node, in the folder of the run."""

    host: Host
    folder: Path
    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """What a command prints."""
        log = self.folder / "command.log"
        process = self.host.start(command, log=log, cwd=self.folder, **self.environment)
        if process.wait(_TIMEOUT_S):
            raise SystemExit(f"{' '.join(command)}: {log.read_text()}")
        return log.read_text()

    def launch(self) -> dict[str, str]:
        """Queue the flow; numbers of its jobs."""
        shape = [
            "--nodes",
            "2",
            "--gpus-per-node",
            "0",
            "--cpus-per-rank",
            "1",
            "--preprocess-nodes",
            "2",
            "--preprocess-cpus",
            "1",
        ]
        options = [
            "--slurm",
            *shape,
            "--time",
            "30:00",
            "--partition",
            "main",
            "--compare",
            "uniform",
            "--set",
            "training.seed=0",
        ]
        told = self.call(sys.executable, "-m", "pipelines.cli", "launch", "recipe.yaml", *options, "--json")
        jobs: dict[str, str] = json.loads(told[told.index("{") :])["jobs"]
        return jobs

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{name}=(\S+)", self.call("scontrol", "show", "job", job))
        return found[1] if found else ""

    def state(self, job: str) -> str:
        """As SLURM has it."""
        return self.field(job, "JobState")

    def log(self, job: str) -> str:
        """What it printed."""
        return "".join(path.read_text() for path in self.folder.glob(f"run/slurm/*-{job}.log"))

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        """Until something is so."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not is_so():
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"{what} did not come; {self.call('squeue')}{self.call('sh', '-c', 'tail -n 20 run/slurm/*.log')}"
                )
            time.sleep(0.5)

    def table(self, jobs: dict[str, str]) -> str:
        """How each job ended, and the lines of the log that say so."""
        rows = [("job", "state", "restarts", "exit code")]
        for name, job in jobs.items():
            rows.append((name, *(self.field(job, field) for field in ("JobState", "Restarts", "ExitCode"))))
        said = [
            line for line in self.log(jobs["search"]).splitlines() if "stopped" in line or "CANCELLED" in line or "wrote" in line
        ]
        return "\n".join([aligned(rows), "the search's log:", *(f"  {line[:160]}" for line in said)])


def disturb(cluster: Cluster, job: str) -> None:
    """Stop a search as SLURM does before a time limit, and then as for a job of higher priority."""
    for number, stop in enumerate((("scancel", "--batch", "--signal=USR1", job), ("scontrol", "requeue", job)), start=1):
        before = _num_updates(cluster, job)
        cluster.wait("news of the search", lambda before=before: _num_updates(cluster, job) > before)  # type: ignore[misc]
        cluster.call(*stop)
        cluster.wait("the search in the queue again", lambda number=number: cluster.field(job, "Restarts") == str(number))  # type: ignore[misc]
        cluster.wait("its place there", lambda: cluster.state(job) == "PENDING")
        # SLURM lets two minutes pass before a job starts again, counted from when all of its processes have ended.
        time.sleep(5)
        cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")
        cluster.wait("its start", lambda: cluster.state(job) == "RUNNING")


def _num_updates(cluster: Cluster, job: str) -> int:
    return cluster.log(job).count("search: ")


def is_right(run: Path, corpus: Path) -> bool:
    """Whether the shards are those of one machine, and the mixture that of an undisturbed search."""
    expected, found = (Workdir(folder / "run") for folder in (corpus / "local", run))
    same_shards = load_catalog(expected.catalog).fingerprint == load_catalog(found.catalog).fingerprint
    print(f"shards of two nodes: {'those of one machine' if same_shards else 'OTHERS'}")
    difference = float(np.abs(trajectory(corpus / "local") - trajectory(run)).max())
    print(f"mixture after every update: at most {difference:.2g} from the undisturbed one")
    missing = [path.name for path in (found.manifest.manifest, found.compare.comparison, found.report) if not path.exists()]
    print(f"missing: {', '.join(missing) or 'nothing'}")
    return same_shards and difference == 0 and not missing


if __name__ == "__main__":
    sys.exit(main())
