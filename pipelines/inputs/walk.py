"""Finding local files: one walk for folders, globs and `init`, with one rule for hidden files, links and workdirs.

- Only what the user wrote is a pattern, never the folder that it is relative to. What exists under a name that looks like a pattern
  is taken as it is.
- Hidden files and folders are never found, unless the user wrote their point: `._note.txt` is what a Mac leaves beside a file.
- Links are followed. A folder that is reached in two ways, or that contains itself, is entered once.
- Workdirs of earlier runs, with their tables and receipts, are never found from a folder above.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fastmix_data.errors import InputError
from fastmix_data.messages import shown
from fastmix_data.workdir import is_workdir_listing
from pipelines.inputs.formats import format_of

_ANY_DEPTH = "**"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file.

    Attributes:
        real_path: where it lies once all links are followed: what tells whether two paths are one file.
        is_linked: whether the path follows a link below where the pattern starts.
        is_exact: whether the user wrote this very path, and did not find it by a pattern or in a folder.
    """

    path: str
    real_path: str
    is_linked: bool
    num_bytes: int
    mtime_ns: int
    is_exact: bool


@dataclass
class Found:
    """What a walk found.

    Attributes:
        num_repeated: links that lead to a folder which was entered already.
        problems: paths that could not be read, or lead nowhere, each with the error that says so.
    """

    files: list[FoundFile] = field(default_factory=list)
    num_repeated: int = 0
    problems: list[tuple[str, InputError]] = field(default_factory=list)

    def each_once(self) -> tuple[list[FoundFile], int]:
        """One path for each real file, and how many others there are.

        A path of one of our endings before others, which the content of a hub's cache has not; one without a link before one with.
        """
        by_real_path: dict[str, FoundFile] = {}
        num_repeated = self.num_repeated
        for file in self.files:
            other = by_real_path.setdefault(file.real_path, file)
            if other is not file:
                num_repeated += other.path != file.path
                by_real_path[file.real_path] = min(other, file, key=_preference)
        return list(by_real_path.values()), num_repeated


def _preference(file: FoundFile) -> tuple[bool, bool, str]:
    return format_of(file.path) is None, file.is_linked, file.path


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder to enter.

    Attributes:
        is_linked: a link leads to it.
        states: how many parts of the pattern may be behind us; all of them: everything in here is wanted.
        is_named: the user wrote all of its path.
    """

    path: str
    real_path: str
    is_linked: bool
    states: frozenset[int]
    is_named: bool


def split_pattern(pattern: str, base: str) -> tuple[str, list[str]]:
    """The folder that a pattern starts from, and its parts.

    >>> split_pattern("a/*.txt", "/x [1]"), split_pattern("/b/c", "/x")
    (('/x [1]', ['a', '*.txt']), ('/', ['b', 'c']))
    """
    if pattern.startswith("~"):
        user, _, rest = pattern.partition("/")
        return os.path.expanduser(user), _parts(rest)
    return ("/" if pattern.startswith("/") else base), _parts(pattern)


def _parts(pattern: str) -> list[str]:
    return [part for part in pattern.split("/") if part not in ("", ".")]


def find_files(pattern: str, *, base: str, where: str) -> Found:
    """Files that a pattern names; a folder stands for all files in it.

    Args:
        base: folder that a relative pattern starts from.
        where: the key of the recipe that errors point at.
    Raises:
        InputError: a folder cannot be read, or a link leads nowhere.
    """
    root, parts = split_pattern(pattern, base)
    found = _Walk(parts, where).run(root)
    if found.problems:
        raise found.problems[0][1]
    return found


def find_all_files(folder: str, *, where: str) -> Found:
    """All files of a folder, and what of it cannot be read."""
    return _Walk([], where).run(folder)


class _Walk:
    """Walks folders and pattern side by side, so that no folder is listed that cannot match."""

    def __init__(self, parts: Sequence[str], where: str) -> None:
        self.parts, self.where = parts, where
        self.found = Found()
        self.entered: set[tuple[str, frozenset[int]]] = set()
        self.places: list[_Place] = []
        # Links wait for the end: a file that can be reached without one is known by that name.
        self.linked: list[_Place] = []

    def run(self, root: str) -> Found:
        self.places.append(_Place(root, os.path.realpath(root), False, self._closed({0}), True))
        while self.places or self.linked:
            place = (self.places or self.linked).pop()
            if (place.real_path, place.states) in self.entered:
                self.found.num_repeated += place.is_linked
                continue
            self.entered.add((place.real_path, place.states))
            self._enter(place)
        return self.found

    def _closed(self, states: Set[int]) -> frozenset[int]:
        """`**` may stand for no folder at all."""
        closed = set(states)
        for state in sorted(states):
            while state < len(self.parts) and self.parts[state] == _ANY_DEPTH:
                state += 1
                closed.add(state)
        return frozenset(closed)

    def _enter(self, place: _Place) -> None:
        literal: dict[str, set[int]] = {}
        wild: list[int] = []
        for state in place.states:
            part = self.parts[state] if state < len(self.parts) else _ANY_DEPTH
            is_pattern = part == _ANY_DEPTH or (glob.has_magic(part) and not os.path.lexists(f"{place.path}/{part}"))
            if is_pattern:
                wild.append(state)
            else:
                literal.setdefault(part, set()).add(state + 1)
        for name, after in literal.items():
            self._visit_named(place, name, self._closed(after | self._after(wild, name)), is_exact=place.is_named and not wild)
        if wild:
            self._visit_listed(place, wild, literal)

    def _visit_named(self, place: _Place, name: str, after: frozenset[int], *, is_exact: bool) -> None:
        path = os.path.join(place.path, name)
        try:
            is_link, status = os.path.islink(path), os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path):
                self._leads_nowhere(path)
            return
        except NotADirectoryError:
            return
        except OSError as error:
            self._is_unreadable(path, error)
            return
        real_path = os.path.realpath(path) if is_link or name == ".." else f"{place.real_path.rstrip('/')}/{name}"
        self._visit(
            FoundFile(path, real_path, place.is_linked or is_link, status.st_size, status.st_mtime_ns, is_exact),
            status.st_mode,
            after,
        )

    def _visit_listed(self, place: _Place, wild: list[int], literal: dict[str, set[int]]) -> None:
        entries = self._listed(place.path)
        if not place.is_named and is_workdir_listing(entry.name for entry in entries):
            return
        for entry in entries:
            name = entry.name
            if name in literal or not (after := self._after(wild, name)):
                continue
            path = os.path.join(place.path, name)
            is_link = entry.is_symlink()
            try:
                status = entry.stat()
            except OSError as error:
                if not is_link or error.errno not in (errno.ENOENT, errno.ELOOP):
                    self._is_unreadable(path, error)
                # It may have been a file of ours or a folder of them; one with another ending was neither.
                elif format_of(name) is not None or "." not in name:
                    self._leads_nowhere(path)
                continue
            real_path = os.path.realpath(path) if is_link else f"{place.real_path.rstrip('/')}/{name}"
            found = FoundFile(path, real_path, place.is_linked or is_link, status.st_size, status.st_mtime_ns, False)
            self._visit(found, status.st_mode, after)

    def _listed(self, path: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(path) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._is_unreadable(path, error)
            return []

    def _after(self, wild: Iterable[int], name: str) -> set[int]:
        """Where in the pattern a name leads to from some of its wild parts."""
        after: set[int] = set()
        for state in wild:
            part = self.parts[state] if state < len(self.parts) else _ANY_DEPTH
            if name.startswith(".") and not part.startswith("."):
                continue
            if part == _ANY_DEPTH:
                after |= {state, min(state + 1, len(self.parts))}  # this name may be the last of it
            elif fnmatchcase(name, part):
                after.add(state + 1)
        return after

    def _visit(self, file: FoundFile, mode: int, after: Set[int]) -> None:
        if stat.S_ISDIR(mode):
            # Links wait for the end, with all that is behind them.
            places = self.linked if file.is_linked else self.places
            places.append(_Place(file.path, file.real_path, file.is_linked, self._closed(after), file.is_exact))
        elif len(self.parts) in after:  # below a file there is nothing for a `**` to stand for
            if stat.S_ISREG(mode):
                self.found.files.append(file)
            elif file.is_exact or format_of(file.path) is not None:
                self._problem(file.path, "is no regular file", "write what it gives to a file")

    def _problem(self, path: str, what: str, remedy: str) -> None:
        self.found.problems.append((path, InputError(self.where, f"{shown(path)} {what}", remedy)))

    def _is_unreadable(self, path: str, error: OSError) -> None:
        self._problem(path, f"cannot be read ({error.strerror})", "mend its permissions, or narrow the pattern")

    def _leads_nowhere(self, path: str) -> None:
        target = os.readlink(path)
        remedy = "run `git annex get .` in its repository" if ".git/annex/" in target else "put it back, or remove the link"
        self._problem(path, f"is a link to {shown(target)}, which is not there", remedy)
