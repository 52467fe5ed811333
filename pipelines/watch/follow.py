"""Following a search by its files, as they grow: on the machine that writes them or on another one."""

from __future__ import annotations

import time

from fastmix_data.results.metrics_file import MetricsReader
from fastmix_data.results.search_progress import SearchProgress
from fastmix_data.workdir import SearchFolder
from pipelines.watch.snapshot import Snapshot

_SECONDS_FOR_A_LINE = 5.0


class SearchFollower:
    """Reads what is new in a search's folder, or in those of its seeds."""

    def __init__(self, folder: SearchFolder) -> None:
        """Nothing need be there yet."""
        self._folder = folder
        self._followed, self._reader, self._progress = folder, MetricsReader(folder.metrics), SearchProgress()

    def look(self) -> Snapshot:
        """The search as it is now; of several, the one that was written to last."""
        newest = self._folder.running()
        if newest.root != self._followed.root:
            self._followed, self._reader = newest, MetricsReader(newest.metrics)
        is_anew, lines = self._reader.new_lines()
        if is_anew:
            self._progress = SearchProgress()
        for line in lines:
            self._progress.add(line)
        return Snapshot(newest, self._progress, time.time(), self._is_done(newest))

    def _is_done(self, newest: SearchFolder) -> bool:
        """Whether the answer is there: a search takes the earlier one's away when it begins, and several end with their mean."""
        last = self._progress.last
        if self._progress.state in ("stopped", "failed"):
            return False  # it may be started again, by a scheduler
        answered = _written_at(newest)
        # The line that says so follows the answer; one that has not come after a while was lost, to a full disk or a crash.
        says_so, least = self._progress.state == "finished", last["time"] if last is not None else 0.0
        if answered is None or not (says_so or least <= answered < time.time() - _SECONDS_FOR_A_LINE):
            return False
        whole = _written_at(self._folder)
        return newest.root == self._folder.root or (whole is not None and whole >= answered)


def _written_at(folder: SearchFolder) -> float | None:
    try:
        return folder.mixture.stat().st_mtime
    except FileNotFoundError:
        return None
