"""The cache on disk: fixed-size slots in files of a bounded folder, shared by all processes of a machine.

A slot is valid if the hash at its end is that of what is before it. So nothing has to be in step: a process may be killed in the middle of
a write, a file may be removed or emptied while others read it, two may write the same slot, and a disk may lose or alter what it was
given. In every case a slot is either what was fetched, or is fetched again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from fastmix_data.errors import FastmixError

HASH_BYTES = 8
_HEADER = 64  # of a file: the version of the object that its slots are from
_PAGE = 4096
_SEGMENTS = 64  # a file is at most this part of the bound, so that there are always some to remove
_LARGEST_FILE = 16 << 20
# Each process looks at the folder's size after it has written this part of the bound: sixteen of them stay within the eighth that is kept
# free for them.
_WRITTEN_PART, _FREE_PART = 128, 8
_TOUCHED_SECONDS = 5.0
_FETCHING, _ROOM = ".fetching", ".making-room"  # locks
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _SlotFile:
    """An open file. It is closed when nobody reads it any more, and not when it is put away."""

    def __init__(self, path: str, *, makes: bool) -> None:
        self.descriptor, self.touched = os.open(path, os.O_RDWR | (os.O_CREAT if makes else 0), 0o666), 0.0

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    @property
    def is_removed(self) -> bool:
        return os.fstat(self.descriptor).st_nlink == 0


class SlotFiles:
    """Slots by key and number, in a folder of at most so many bytes.

    Attributes:
        keeps: False once the disk is full: what is there is read, and nothing is added.
    """

    def __init__(self, folder: Path, *, max_bytes: int, most_open: int) -> None:
        """Make the folder, and room in it if another bound was larger.

        Raises:
            FastmixError: it cannot be written to.
        """
        self._folder, self._max_bytes, self._most_open = folder, max_bytes, most_open
        self._open: OrderedDict[str, _SlotFile] = OrderedDict()
        self._lock, self._written = threading.Lock(), 0
        self.keeps = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _FETCHING).touch()
        except OSError as error:
            raise FastmixError(
                folder, f"the cache cannot be written to ({error.strerror})", "name another with storage.cache"
            ) from error
        self._make_room()

    def slots_per_file(self, slot_bytes: int) -> int:
        """How many slots of a size lie in one file; the same for all processes with the same bound."""
        return max(1, min(_LARGEST_FILE, self._max_bytes // _SEGMENTS) // (slot_bytes + HASH_BYTES))

    def get(self, key: str, slot: int, *, slot_bytes: int) -> bytes | None:
        """What was put into a slot, if it is still there."""
        stride, per_file = slot_bytes + HASH_BYTES, self.slots_per_file(slot_bytes)
        file = self._file(key, slot // per_file, per_file, makes=False)
        if file is None:
            return None
        stored = os.pread(file.descriptor, stride, _HEADER + slot % per_file * stride)
        if len(stored) < stride or stored[slot_bytes:] != _hash(stored[:slot_bytes], slot):
            return None
        self._touch(file)
        return stored[:slot_bytes]

    def put(self, key: str, contents: Mapping[int, bytes], *, version: str) -> None:
        """Keep slots of neighbouring numbers that were fetched from one version of an object.

        Slots of another version are forgotten. A full disk is said once, and nothing more is kept.
        """
        if not self.keeps or not contents:
            return
        slot_bytes = len(next(iter(contents.values())))
        per_file, runs = self.slots_per_file(slot_bytes), _runs(sorted(contents))
        try:
            for run in runs:
                for number in range(run.start // per_file, (run.stop - 1) // per_file + 1):
                    here = range(max(run.start, number * per_file), min(run.stop, (number + 1) * per_file))
                    piece = b"".join(contents[slot] + _hash(contents[slot], slot) for slot in here)
                    self._write(key, number, per_file, here.start % per_file * (slot_bytes + HASH_BYTES), piece, version=version)
        except OSError as error:
            if error.errno not in _FULL:
                raise FastmixError(
                    self._folder, f"the cache cannot be written to ({error.strerror})", "see to its disk"
                ) from error
            self.keeps = False
            remedy = "free some, or lower storage.cache_bytes"
            warnings.warn(
                f"{self._folder}: no space left on the cache's disk, so shards are read without keeping more; {remedy}",
                stacklevel=3,
            )

    def _write(self, key: str, number: int, per_file: int, offset: int, piece: bytes, *, version: str) -> None:
        file = self._file(key, number, per_file, makes=True)
        assert file is not None
        head = version.encode()[:_HEADER].ljust(_HEADER, b"\0")
        found = os.pread(file.descriptor, _HEADER, 0)
        if found != head:
            if found:
                os.ftruncate(file.descriptor, 0)
            os.pwrite(file.descriptor, head, 0)
        os.pwrite(file.descriptor, piece, _HEADER + offset)
        with self._lock:
            self._written += (-(-len(piece) // _PAGE) + 1) * _PAGE  # it may begin in the middle of a page
            is_due = self._written >= self._max_bytes // _WRITTEN_PART
            self._written = 0 if is_due else self._written
        if is_due:
            self._make_room()

    def version(self, key: str, slot: int, *, slot_bytes: int) -> str | None:
        """Of the object that slots beside this one are from, if there are any."""
        per_file = self.slots_per_file(slot_bytes)
        file = self._file(key, slot // per_file, per_file, makes=False)
        head = b"" if file is None else os.pread(file.descriptor, _HEADER, 0)
        return head.rstrip(b"\0").decode() if head else None

    @contextmanager
    def alone(self, names: Iterable[str]) -> Iterator[None]:
        """Keep other threads and processes from fetching what has one of these names, until the block ends."""
        # Ranges of one lock file, taken in ascending order so that nobody waits in a circle. Locks of the open file, not of the process:
        # those would not keep its own threads apart, and would be gone with the first of them that closes the file.
        descriptor = os.open(self._folder / _FETCHING, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            command = getattr(fcntl, "F_OFD_SETLKW", None)
            if command is None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            else:
                for place in sorted({xxhash.xxh3_64_intdigest(name.encode()) >> 2 for name in names}):
                    fcntl.fcntl(descriptor, command, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
            yield
        finally:
            os.close(descriptor)

    def _file(self, key: str, number: int, per_file: int, *, makes: bool) -> _SlotFile | None:
        path = f"{self._folder}/{key}-{per_file}-{number}"
        with self._lock:
            file = self._open.get(path)
            if file is None or (makes and file.is_removed):
                try:
                    file = self._open[path] = _SlotFile(path, makes=makes)
                except FileNotFoundError:
                    if makes:
                        raise
                    return None
            self._open.move_to_end(path)
            if len(self._open) > self._most_open:
                self._open.popitem(last=False)
            return file

    def _touch(self, file: _SlotFile) -> None:
        now = time.monotonic()
        if now - file.touched > _TOUCHED_SECONDS:
            file.touched = now
            os.utime(file.descriptor)

    def _make_room(self) -> None:
        """Remove the files that were not used for longest until an eighth is free."""
        with (self._folder / _ROOM).open("w") as lock:
            # Waited for: who went on writing while another looks could be past the bound before its next turn.
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = sorted(_files_in(self._folder))
            # Disk blocks, not lengths: of a file with few slots in it most is a hole.
            total, bound = sum(num_bytes for _, num_bytes, _ in found), self._max_bytes - self._max_bytes // _FREE_PART
            for _, num_bytes, path in found:
                if total <= bound:
                    return
                # Emptied first: who has it open would keep its bytes on the disk, where nobody counts them.
                with open(path, "r+b") as file:  # noqa: PTH123
                    os.unlink(path)  # noqa: PTH108
                    os.ftruncate(file.fileno(), 0)
                total -= num_bytes


def _files_in(folder: Path) -> Iterator[tuple[float, int, str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                stat = entry.stat(follow_symlinks=False)
                yield stat.st_mtime, stat.st_blocks * 512, entry.path


def _runs(numbers: list[int]) -> list[range]:
    starts = [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1] + 1]
    return [range(numbers[a], numbers[b - 1] + 1) for a, b in zip(starts, [*starts[1:], len(numbers)], strict=True)]


def _hash(content: bytes, slot: int) -> bytes:
    # With the number in it, so that a slot in another's place is none.
    return xxhash.xxh3_64_digest(content, seed=slot)
