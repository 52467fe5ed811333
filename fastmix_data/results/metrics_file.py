"""Lines of JSON that grow while a search runs: appended by one process, read by any number of others.

A line that a crash tore is skipped by readers and gone after the next `keep_lines`. Nothing is fsynced: what a power failure
takes of these lines is told again by the trajectory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from fastmix_data.atomic_files import atomic_file

Line = dict[str, Any]
_log = logging.getLogger(__name__)


class MetricsFile:
    """Appends lines, each with one system call."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened before the first line."""
        self._path = path
        self._descriptor: int | None = None
        self._is_torn = self._has_warned = False

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line. A disk that is full costs lines, and a warning, but not the search."""
        content = (b"\n" if self._is_torn else b"") + orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
        try:
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._is_torn = os.write(self._descriptor, content) < len(content)
        except OSError as error:
            self._is_torn = True
            if not self._has_warned:
                _log.warning("%s: %s; lines are left out until they can be written", self._path, error.strerror)
            self._has_warned = True

    def close(self) -> None:
        """Let go of the file; the next line opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class MetricsReader:
    """Reads lines as they come, each once, also over a file system shared with the writer."""

    def __init__(self, path: Path) -> None:
        """Nothing need be there yet."""
        self.path = path
        self._offset, self._identity = 0, -1

    def new_lines(self) -> tuple[bool, list[Line]]:
        """Whether the file was begun anew since the last call, so that what was read before is void, and its lines since then."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                # Lines are cut off by putting another file in this one's place, which need not be shorter by now.
                is_anew = status.st_ino != self._identity or status.st_size < self._offset
                if is_anew:
                    self._offset, self._identity = 0, status.st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            was_there, self._offset, self._identity = self._identity != -1, 0, -1
            return was_there, []
        end = content.rfind(b"\n") + 1  # the writer may be in the middle of the last one
        self._offset += end
        return is_anew, _parsed(content[:end])


def read_lines(path: Path) -> list[Line]:
    """All lines so far; none where there is no file."""
    return MetricsReader(path).new_lines()[1]


def keep_lines(path: Path, keep: Callable[[Line], bool]) -> None:
    """Leave only these lines, by putting a new file in the old one's place."""
    with atomic_file(path) as file:
        file.writelines(orjson.dumps(line) + b"\n" for line in read_lines(path) if keep(line))


def _parsed(content: bytes) -> list[Line]:
    found = []
    for text in content.splitlines():
        try:
            line = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        if isinstance(line, dict) and "event" in line:
            found.append(line)
    return found
