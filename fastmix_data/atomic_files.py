"""How files come into being: written under a temporary name, fsynced, renamed last; and how they are identified."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.errors import CorruptArtefactError, FastmixError

PARTIAL_SUFFIX = ".partial"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing so that it appears complete or not at all.

    The bytes go to a sibling named `*.partial`, which is fsynced and renamed when the block ends without an error and
    removed when it does not.

    Raises:
        FastmixError: the disk is full; names the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the process in its name: two that write the same file each finish their own, and the later one stays.
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # Renamed after its bytes are on disk, else a crash could leave the final name on an empty file; then the name itself is synced.
        partial.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FastmixError(path, "no space left on the disk", "free some and run the same command again") from error
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_files(path: Path) -> list[Path]:
    """What processes that were killed in `atomic_file` left of a file."""
    return [left for left in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL_SUFFIX}") if left.suffixes[-2][1:].isdecimal()]


@contextmanager
def exclusive_lock(path: Path, *, command: str) -> Iterator[None]:
    """Keep other runs of a command out of a folder, which is made if missing.

    Raises:
        FastmixError: another process holds the lock file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        # flock and not the file's existence: the system drops it when the process ends, however it ends.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FastmixError(
                path.parent, f"another fastmix {command} works in this workdir", "wait for it, or name another"
            ) from error
        yield


def fsync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_file(path) as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
        file.write(b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CorruptArtefactError: it is not JSON.
    """
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise CorruptArtefactError(path, f"not valid JSON ({error})", "delete it and run its command again") from error


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as zstd-compressed Parquet, atomically."""
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(content: Any) -> str:
    """Hexadecimal SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)).hexdigest()
