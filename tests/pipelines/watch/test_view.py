"""The live view fits into the terminal, whatever its size and the number of sources."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from fastmix_data.results.search_progress import SearchProgress
from fastmix_data.workdir import SearchFolder
from pipelines.watch.snapshot import Snapshot
from pipelines.watch.view import view

NOW, FOLDER = 1_000_000.0, SearchFolder(Path("/data/run/search"))


def snapshot_of(num_sources: int, *, num_updates: int = 30, later: float = 1.0, **last: Any) -> Snapshot:
    """A search of so many sources, the last line of which was told a second ago."""
    names = [f"a_source_with_a_long_name_{number:03d}" for number in range(num_sources)]
    common = {"stage": "search", "total_tokens": 4000, "time": NOW}
    begin = {"event": "begin", "sources": names, "targets": ["code", "math"], "num_steps": 400, "num_ranks": 16, "tokens": 0}
    progress, weights_K = SearchProgress(), np.linspace(1, 2, num_sources)
    progress.add({**common, **begin})
    for number in range(num_updates):
        weights_K = weights_K ** (1 + 0.05 * np.sign(np.arange(num_sources) - num_sources / 3))
        weights = dict(zip(names, (weights_K / weights_K.sum()).tolist(), strict=True))
        update = {"event": "update", "step": 4 * number, "tokens": 40 * number, "stage_tokens": 40 * number, "weights": weights}
        losses = {"train_loss": 9 / (1 + number), "target_loss": 8 / (1 + number), "target_losses": {"code": 3.0, "math": None}}
        rates = {"tokens_per_second": 1.2e6, "mfu": 0.4123, "seconds_left": 4000.0, "peak_memory_bytes": 7 << 30}
        progress.add({**common, **update, **losses, **rates, "scores": weights, "target_weights": {"code": 0.5, "math": 0.5}})
    for round, loss in ((0, 3.5), (1, 3.25)):
        trial = {"event": "trial", "tokens": 3000, "stage_tokens": 0, "candidate": "proportional", "round": round, "loss": loss}
        trial["num_steps"] = 40
        progress.add({**common, **trial, "probability": {"proportional": 0.75} if round else None, **last})
    return Snapshot(FOLDER, progress, NOW + later, False)


def shown(snapshot: Snapshot, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False, color_system=None)
    console.print(view(snapshot, width=width, height=height))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    lines: list[str] = printed.rstrip("\n").split("\n")
    return lines


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 40), (160, 50)])
def test_it_fits_and_names_the_largest_of_200_sources(width: int, height: int) -> None:
    snapshot = snapshot_of(200)
    lines = shown(snapshot, width, height)
    assert len(lines) <= height and max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    (others,) = [line for line in lines if " others " in line]
    named = [share for _, share, _ in snapshot.shares if f"{100 * share:.2f}%" in text]
    number = int(others.split(" others")[0].split()[-1])
    rest = sum(share for _, share, _ in snapshot.shares[200 - number :])
    assert f"{100 * rest:.1f}%" in others and len(named) >= 200 - number >= 3
    for part in ("MFU 41%", "1.20M tok/s", "16 ranks", "following the scores", "proportional shares", "75%", "▲", "▁"):
        assert part in text


def test_a_search_that_falls_silent_is_doubted() -> None:
    assert "is it still running" not in "\n".join(shown(snapshot_of(3), 100, 30))
    assert "nothing heard for 10 min 0 s: is it still running?" in "\n".join(shown(snapshot_of(3, later=600.0), 100, 30))


def test_before_the_first_line_it_says_what_it_waits_for() -> None:
    snapshot = Snapshot(FOLDER, SearchProgress(), NOW, False)
    assert "no search has begun here yet; waiting for /data/run/search/" in " ".join(shown(snapshot, 200, 24))
