"""Readers of other projects, each run by the Python of an environment of its own where that is needed.

`scripts/test_exports.sh` makes the environments. A reader is `readers/NAME.py`; it prints one JSON value, and imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

_READERS = Path(__file__).parent / "readers"


def read_with(name: str, *arguments: object, package: str | None = None) -> Any:
    """What a reader prints, as JSON; the test is skipped where neither its environment nor its package is there.

    Args:
        package: that this test's own environment may have instead.
    """
    folder = os.environ.get("FASTMIX_EXPORT_ENVIRONMENTS")
    python = Path(folder) / name / "bin" / "python" if folder else None
    if python is None or not python.exists():
        if package is None or find_spec(package) is None:
            pytest.skip(f"no environment of {name}: bash scripts/test_exports.sh {name}")
        python = Path(sys.executable)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # -P: a reader has the name of the package that it imports, and its own folder would come first.
    command = [str(python), "-P", str(_READERS / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
