"""The GPU check: parts in order of importance, each a process of its own with a time limit; their rows are one Markdown table.

Started by `scripts/gpu_check.sh`, which sets the paths. A part that fails or runs out of time says so in a row, and the next one runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("check", "setting", "found", "MFU", "wanted", "verdict", "at, s")
OK, OFF = "ok", "**off**"
NO_GPU = 77  # what test runners take for skipped


@dataclass(frozen=True)
class Part:
    """A script beside this one, and the seconds that it may take on a GPU."""

    script: str
    seconds: int


PARTS = (
    Part("environment", 90),
    Part("exactness", 90),
    Part("waits", 60),
    Part("zero_stages", 180),
    Part("ranks", 150),
    Part("memory_by_size", 180),
    Part("peer", 240),
    Part("overhead", 150),
    Part("demo_run", 150),
    Part("side_by_side", 90),
    Part("two_processes", 90),
    Part("long_search", 300),
)
_FEWEST_SECONDS = 15  # less is not even enough to import everything


class Table:
    """Prints rows as they come, each with the time; the heading comes with the first, so that without a GPU there is none."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started, self._is_empty = time.monotonic(), True

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def add(self, row: str) -> None:
        """Print a row that lacks its last cell."""
        if self._is_empty:
            print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
            self._is_empty = False
        print(f"{row.rstrip()} {self.seconds:.0f} |", flush=True)


def run_part(part: Part, table: Table, *, seconds: float, logs: Path) -> int:
    """Run a part and print its rows as they come.

    Returns:
        0 if all is as wanted, NO_GPU where the part says so, else 1.
    """
    log, is_off, stopped = logs / f"{part.script}.log", False, threading.Event()
    with log.open("w") as others:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(f"{part.script}.py"))],
            stdout=subprocess.PIPE,
            stderr=others,
            text=True,
            start_new_session=True,  # so that what the part starts ends with it
        )

        def stop() -> None:
            stopped.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("|"):
                is_off |= OFF in line
                table.add(line)
            else:
                print(line, end="", file=others, flush=True)
        code = process.wait()
        timer.cancel()
    if code == 0:
        return int(is_off)
    said = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    if code == NO_GPU:
        print(said[-1], file=sys.stderr)
        return NO_GPU
    # Whatever is still said at the end of a process, the error is what the reader needs.
    errors = [line for line in said if "Error" in line] or said or [f"ended with code {code}"]
    problem = f"not done after {seconds:.0f} s" if stopped.is_set() else errors[-1][:300]
    table.add(f"| {part.script} | | {problem.replace('|', '/')} | | | {OFF} |")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument(
        "--cpu", action="store_true", default=os.environ.get("FASTMIX_GPU_CHECK") == "cpu", help="tiny, without a GPU"
    )
    parser.add_argument("--logs", type=Path, help="folder for what the parts print beside their rows; thrown away when not given")
    parser.add_argument("--parts", nargs="+", choices=[part.script for part in PARTS], help="only these")
    options = parser.parse_args()
    if options.cpu:
        os.environ.update(CUDA_VISIBLE_DEVICES="", FASTMIX_GPU_CHECK="cpu")
    table, results = Table(), []
    with tempfile.TemporaryDirectory(prefix="fastmix-gpu-check-") as folder:
        logs = options.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            if options.parts and part.script not in (PARTS[0].script, *options.parts):
                continue
            left = 60 * options.minutes - table.seconds
            if left < _FEWEST_SECONDS:
                table.add(f"| {part.script} | | left out: no time left | | | |")
                continue
            results.append(run_part(part, table, seconds=left if options.cpu else min(part.seconds, left), logs=logs))
            if results[-1] == NO_GPU:
                return NO_GPU
    return max(results, default=0)


if __name__ == "__main__":
    sys.exit(main())
