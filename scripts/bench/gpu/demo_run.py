"""The demo from beginning to end, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from row import ON_GPU, say

IN_THE_README = ("code", "descriptions", "docstrings")  # the three largest shares there, in whatever order
TINY = ["--set", "training.token_budget=160K", "--set", "search.eval_sequences=32"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipelines.cli", "demo", "--dir", folder, *([] if ON_GPU else TINY)]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=sys.stderr)
        taken = time.monotonic() - started
        mixture = json.loads((Path(folder) / "run" / "search" / "mixture.json").read_text())
    weights = dict(sorted(mixture["weights"].items(), key=lambda item: -item[1]))
    same = set(list(weights)[:3]) == set(IN_THE_README)
    say(
        "fastmix demo",
        f"{'bf16' if ON_GPU else 'float32, less training'}, {mixture['search']['num_steps']} steps",
        f"{taken:.0f} s, of which search {mixture['search']['seconds']:.0f}; "
        + ", ".join(f"{name} {weight:.1%}" for name, weight in weights.items()),
        wanted=f"most of {', '.join(IN_THE_README)}, as in the README",
        ok=same if ON_GPU else None,
    )


if __name__ == "__main__":
    main()
