"""`fastmix watch`: from waiting for a search to its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from fastmix_data.errors import InputError
from fastmix_data.workdir import Workdir
from pipelines.report.page import write_report
from pipelines.watch.follow import SearchFollower
from pipelines.watch.snapshot import Snapshot

_SECONDS_BETWEEN_VIEWS, _SECONDS_BETWEEN_LINES = 0.5, 10.0
_LINES_AT_THE_END = 50  # which may scroll


def watch(paths: Workdir, *, report_seconds: float | None = None) -> Snapshot:
    """Show a search until it has found its answer or the user has seen enough: live in a terminal, else as lines on stdout.

    Args:
        report_seconds: write the workdir's report anew so often, as a page that a browser loads again by itself; the last one does not.
    """
    follower = SearchFollower(paths.search)
    reporting = _Reporting(paths, report_seconds)
    try:
        (_live if sys.stdout.isatty() else _lines)(follower, reporting.look)
    except KeyboardInterrupt:
        pass
    finally:
        snapshot = follower.look()
        reporting.end()
    return snapshot


def _live(follower: SearchFollower, seen: Callable[[Snapshot], None]) -> None:
    from rich.console import Console
    from rich.live import Live

    from pipelines.watch.view import view

    console = Console()
    # On a screen of its own, which a terminal that is made smaller cannot leave pieces of.
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            snapshot = follower.look()
            live.update(view(snapshot, width=console.width, height=console.height), refresh=True)
            seen(snapshot)
            if snapshot.is_done:
                break
            time.sleep(_SECONDS_BETWEEN_VIEWS)
    console.print(view(snapshot, width=console.width, height=max(console.height, _LINES_AT_THE_END)))


def _lines(follower: SearchFollower, seen: Callable[[Snapshot], None]) -> None:
    told_at, told = -_SECONDS_BETWEEN_LINES, ("", "")
    while True:
        snapshot = follower.look()
        now = (snapshot.progress.state, snapshot.progress.stage)
        is_news = snapshot.progress.state != "waiting" and time.monotonic() - told_at >= _SECONDS_BETWEEN_LINES
        if is_news or now != told or snapshot.is_done:
            print(snapshot.line(), flush=True)
            told_at, told = time.monotonic(), now
        seen(snapshot)
        if snapshot.is_done:
            return
        time.sleep(_SECONDS_BETWEEN_VIEWS)


class _Reporting:
    """Writes the report now and then."""

    def __init__(self, paths: Workdir, seconds: float | None) -> None:
        self._paths, self._seconds = paths, seconds
        self._written_at = float("-inf")

    def look(self, snapshot: Snapshot) -> None:
        """Write it if it is time to."""
        is_time = self._seconds is not None and time.monotonic() - self._written_at >= self._seconds
        if is_time and not snapshot.is_done:
            self._written_at = time.monotonic()
            self._write(self._seconds)

    def end(self) -> None:
        """Write it for the last time; nobody writes it again, so that a browser need not look."""
        if self._seconds is not None:
            self._write(None)

    def _write(self, refresh_seconds: float | None) -> None:
        try:
            write_report(self._paths, refresh_seconds=refresh_seconds)
        except InputError:  # nothing is there yet
            return
