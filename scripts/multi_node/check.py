"""Run by scripts/multi_node_check.sh: searches on two hosts by each launcher, their trajectories side by side, and a table of failures."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from faults import FAULTS, run_fault
from folders import copied, prepare, trajectory
from hosts import Host, can_make_hosts, two_hosts
from launchers import LAUNCHERS, why_not

from fastmix_data.text_table import aligned

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
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        corpus = prepare(Path(folder), token_budget="16K")
        expected = trajectory(corpus / "local")
        rows = [("launcher", "updates", "largest difference of a share", "")]
        for name in (name for name in LAUNCHERS if name in wanted or not wanted):
            rows.append((name, *compared(name, corpus, hosts, expected)))
        if len(rows) > 1:
            print(aligned(rows), flush=True)
        is_fine = True
        for name in FAULTS:
            if not wanted or "faults" in wanted or name in wanted:
                outcome = run_fault(name, corpus, hosts)
                is_fine &= outcome.is_fine
                print(outcome.text(), flush=True)
    return int(any(row[3] == "WRONG" for row in rows) or not is_fine)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
