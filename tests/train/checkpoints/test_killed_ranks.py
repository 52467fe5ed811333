"""One seed of scripts/fault_check.sh, which has many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "fault_check.sh"


def test_a_search_whose_rank_was_killed_ends_where_it_would_have() -> None:
    command, environment = ["bash", SCRIPT, "--first", "1", "--seeds", "1"], {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert lines[0].startswith(
        "seed 1: reference, ZeRO 1, same ranks; one killed in reference run; finished on 2; as undisturbed"
    )
    assert lines[1].startswith("1 of 1 seeds ended as undisturbed; 1 times ranks were killed")
