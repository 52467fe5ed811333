"""Looking on at a search: the lines of a real one, as they were there at some moment and as they come."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest
from installed_command import FASTMIX, fastmix, run_process

from fastmix_data.results.metrics_file import read_lines
from fastmix_data.workdir import Workdir
from pipelines.watch.run import watch

REFRESH = re.compile(r'<meta http-equiv="refresh" content="1">')


@pytest.fixture
def halfway(copied_run: Path) -> tuple[Workdir, bytes, bytes]:
    """The run when half of its updates were made, in the middle of a line; with the lines that come after it and the answer."""
    paths = Workdir(copied_run / "run")
    content, answer = paths.search.metrics.read_bytes(), paths.search.mixture.read_bytes()
    lines = content.splitlines(keepends=True)
    updates = [number for number, line in enumerate(lines) if b'"event":"update"' in line]
    end = sum(map(len, lines[: updates[len(updates) // 2] + 1])) + 20
    paths.search.metrics.write_bytes(content[:end])
    for path in (paths.search.mixture, paths.search.trajectory, paths.manifest.manifest, paths.report):
        path.unlink()
    return paths, content[end:], answer


def test_a_search_is_shown_as_far_as_it_is(halfway: tuple[Workdir, bytes, bytes], copied_run: Path) -> None:
    paths, _, _ = halfway
    last = read_lines(paths.search.metrics)[-1]
    shown = run_process([FASTMIX, "watch", "recipe.yaml", "--once"], cwd=copied_run, PYTHONPROFILEIMPORTTIME="1")
    assert f"step {last['step']} of {last['total_tokens'] // 256}" in shown.stdout and "following the scores, " in shown.stdout
    assert not re.search(r"\| +(torch|dask|rich)$", shown.stderr, re.MULTILINE)  # it is looked at from a login node
    said = json.loads(fastmix("watch", "recipe.yaml", "--json", cwd=copied_run).stdout)
    assert (said["state"], said["step"], said["weights"]) == ("running", last["step"], last["weights"])
    done = last["tokens"] / last["total_tokens"]
    assert said["share_done"] == done and said["losses"]["train"] == last["train_loss"]

    fastmix("report", "recipe.yaml", cwd=copied_run)
    page = paths.report.read_text()
    assert f"The search is running, {done:.0%} done; so far the mixture is " in page and not REFRESH.search(page)
    assert "Where the scores led" in page and "no mixture" not in page
    refused = fastmix("watch", "recipe.yaml", "--once", "--report", "1", cwd=copied_run, code=2)
    assert "`fastmix report` writes the page once" in refused.output


def test_a_search_is_followed_to_its_end_and_the_report_with_it(
    halfway: tuple[Workdir, bytes, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, rest, answer = halfway
    pages: list[str] = []

    def go_on() -> None:
        while not paths.report.exists():
            time.sleep(0.01)
        pages.append(paths.report.read_text())
        paths.search.mixture.write_bytes(answer)
        with paths.search.metrics.open("ab") as file:
            file.write(rest)

    search = threading.Thread(target=go_on)
    search.start()
    watch(paths, report_seconds=1)
    search.join()
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("following the scores, ") and last.startswith("finished: trials chose ")
    assert REFRESH.search(pages[0]) and "The search is running" in pages[0]
    page = paths.report.read_text()
    assert not REFRESH.search(page) and "The mixture is " in page


def test_before_a_search_it_says_what_it_waits_for(corpus: Path) -> None:
    shown = fastmix("watch", "recipe.yaml", "--once", cwd=corpus).stdout
    assert "no search has begun here yet; waiting for " in shown
