"""Files against the size and hash that a catalog or manifest recorded of them, on the disk or where they were copied to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastmix_data.errors import CorruptArtefactError
from fastmix_data.foreign.identity import identity_now
from fastmix_data.foreign.storage import Stored, is_foreign
from fastmix_data.machine import num_cores
from fastmix_data.progress import Advance
from fastmix_data.remote.object_store import ObjectStore
from fastmix_data.remote.shard_store import lies_in_store, name_in_store

_THREADS = 4  # hashing lets go of the interpreter's lock; a disk is busy with that many
RESTORE = "restore it from a copy, or delete it and run `fastmix preprocess` again"
_PUT_BACK = "put it back, or run `fastmix preprocess --replace`"
_COPY = "copy WORKDIR/shards there again"


@dataclass(frozen=True)
class Expected:
    """What a shard's file should be: as a row of a catalog or a part of a manifest has it."""

    root: Path
    stored: Stored

    @property
    def path(self) -> Path:
        return self.root / self.stored.path

    @property
    def is_sampled(self) -> bool:
        return is_foreign(self.stored.storage)


def problems_of(expected: Sequence[Expected], *, objects: ObjectStore | None, advance: Advance) -> Iterator[CorruptArtefactError]:
    """Re-hash files in a few threads; a file of another size is not worth hashing.

    Args:
        objects: what the shards were copied to, to be read in place of the disk.
        advance: told the bytes of each file of ours that was hashed.

    Raises:
        InputError, FastmixError: as `ObjectStore`, but for an object that is missing.
    """
    if not expected:
        return

    def check(file: Expected) -> CorruptArtefactError | None:
        where: object
        if objects is not None and lies_in_store(file.stored.path, file.stored.storage):
            name = name_in_store(file.stored.path)
            where, problem, remedy = objects.address(name), _problem_in_store(objects, name, file.stored, advance), _COPY
        else:
            where, problem, remedy = file.path, _problem_on_disk(file, advance), _PUT_BACK if file.is_sampled else RESTORE
        return CorruptArtefactError(where, problem, remedy) if problem else None

    num_threads = min(_THREADS, len(expected), num_cores() if objects is None else _THREADS)
    with ThreadPoolExecutor(num_threads) as pool:
        yield from filter(None, pool.map(check, expected))


def _problem_in_store(objects: ObjectStore, name: str, stored: Stored, advance: Advance) -> str:
    try:
        found = objects.find(name)
    except CorruptArtefactError:
        return "the shard is missing"
    if found.num_bytes != stored.bytes:
        return f"the shard has {found.num_bytes} bytes, recorded are {stored.bytes}"
    sha256 = objects.sha256(name, found)
    advance(stored.bytes)
    return _difference(sha256, stored)


def _problem_on_disk(file: Expected, advance: Advance) -> str:
    stored, what = file.stored, "the file" if file.is_sampled else "the shard"
    if not file.path.is_file():
        return f"{what} is missing"
    if (size := file.path.stat().st_size) != stored.bytes:
        return f"{what} has {size} bytes, recorded are {stored.bytes}"
    try:
        found = identity_now(stored, root=file.root)
    except FileNotFoundError:
        return f"its mask {stored.mask_path} is missing"
    if file.is_sampled:
        return "" if found == stored.sha256 else "the file or its mask is not what was imported: a sample of its bytes differs"
    advance(stored.bytes)
    return _difference(found, stored)


def _difference(sha256: str, stored: Stored) -> str:
    return "" if sha256 == stored.sha256 else f"the shard's sha256 is {sha256[:12]}..., recorded is {stored.sha256[:12]}..."
