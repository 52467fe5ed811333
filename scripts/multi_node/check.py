"""Run by scripts/multi_node_check.sh: searches on two hosts by each launcher, their trajectories side by side, and a table of failures."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from faults import FAULTS, run_fault
from hosts import Host, can_make_hosts, two_hosts
from installed_command import read_recipe, write_corpus, write_recipe
from launchers import LAUNCHERS, why_not

from fastmix_data.text_table import aligned
from fastmix_data.workdir import SearchFolder, Workdir

# Sums over ranks are taken in another order by other topologies of gloo's rings; two ranks leave one order.
_TOLERANCE = 0.0
_TIMEOUT_S = 300


def main(wanted: Sequence[str]) -> int:
    """Do what is asked for, all by default; the exit code."""
    problem = can_make_hosts()
    if problem:
        print(f"no hosts can be made here: {problem}")
        return 77
    with tempfile.TemporaryDirectory(prefix="fastmix-nodes-") as folder, two_hosts() as hosts:
        corpus = prepare(Path(folder))
        expected = trajectory(corpus / "local")
        rows = [("launcher", "updates", "largest difference of a share", "")]
        for name in (name for name in LAUNCHERS if name in wanted or not wanted):
            rows.append((name, *compared(name, corpus, hosts, expected)))
        print(aligned(rows) if len(rows) > 1 else "")
        faults = [run_fault(name, corpus, hosts) for name in FAULTS if not wanted or "faults" in wanted or name in wanted]
        for fault in faults:
            print(fault.text())
    return int(any(row[3] == "WRONG" for row in rows) or not all(fault.is_fine for fault in faults))


def prepare(folder: Path) -> Path:
    """A corpus with shards, and the search on two ranks of this machine that others are measured by."""
    write_corpus(folder)
    recipe = read_recipe(folder)
    recipe["training"] |= {"token_budget": "16K"}
    recipe["search"] |= {"trial_fraction": 0.0}
    write_recipe(folder, recipe)
    fastmix = [sys.executable, "-m", "pipelines.cli"]
    subprocess.run([*fastmix, "preprocess", "recipe.yaml", "--workers", "1"], cwd=folder, check=True, capture_output=True)
    run = copied(folder, "local")
    subprocess.run([*fastmix, "search", "recipe.yaml", "--nproc", "2"], cwd=run, check=True, capture_output=True)
    return folder


def copied(folder: Path, name: str, *, with_shards: bool = True) -> Path:
    """A folder with the recipe, its data and perhaps its shards, and no search in it."""
    run = folder / name
    run.mkdir()
    shutil.copy(folder / "recipe.yaml", run)
    for path in folder.glob("*.jsonl"):
        (run / path.name).symlink_to(path)
    if with_shards:
        shutil.copytree(folder / "run", run / "run")
    return run


def compared(name: str, corpus: Path, hosts: tuple[Host, Host], expected: np.ndarray) -> tuple[str, str, str]:
    """A search by a launcher: updates, how far its trajectory is from the expected one, and the verdict."""
    missing = why_not(name)
    if missing:
        return "", "", f"left out: {missing}"
    folder = copied(corpus, name)
    code = LAUNCHERS[name](folder, hosts, timeout_s=_TIMEOUT_S)
    if code:
        print((folder / "log").read_text()[-4000:], file=sys.stderr)
        return "", f"exit code {code}", "WRONG"
    found = trajectory(folder)
    if found.shape != expected.shape:
        return str(len(found)), f"expected {len(expected)} updates", "WRONG"
    difference = float(np.abs(found - expected).max())
    return str(len(found)), f"{difference:.2g}", "same" if difference <= _TOLERANCE else "WRONG"


def trajectory(folder: Path) -> np.ndarray:
    """Shares after every update, (updates, K)."""
    search: SearchFolder = Workdir(folder / "run").search
    table = pq.read_table(search.trajectory)
    return np.array(table["weights"].to_pylist())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
