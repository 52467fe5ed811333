"""Runs of named flat tensors in files of the safetensors format, one of each rank; put together again whatever the number of ranks.

A tensor `NAME@FIRST` of a file holds the elements FIRST, FIRST + 1, ... of the flat tensor NAME.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import orjson
import torch
from torch import Tensor

from fastmix_data.errors import CorruptArtefactError

# By name: the first element that a rank holds, and those from there on, flat.
Runs: TypeAlias = Mapping[str, tuple[int, Tensor]]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PIECE = 1 << 24  # bytes hashed and written at a time; longer than Python holds its lock for either
_REMEDY = "remove it, and the same command goes on from the checkpoint before"


def equal_share(values: Tensor, *, rank: int, world_size: int) -> tuple[int, Tensor]:
    """A rank's run of what all ranks hold alike, so that each writes a part of it."""
    flat = values.detach().reshape(-1)
    first, end = (flat.numel() * edge // world_size for edge in (rank, rank + 1))
    return first, flat[first:end]


@dataclass(frozen=True)
class WrittenFile:
    """What a file must be found as."""

    num_bytes: int
    sha256: str


class _HashedFile:
    """Hashes what is written, in pieces during which other threads go on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._num_bytes = file, hashlib.sha256(), 0

    def write(self, content: memoryview | bytes) -> None:
        view = memoryview(content)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self._hash.update(piece)
            self._file.write(piece)
        self._num_bytes += len(view)

    def close(self) -> WrittenFile:
        """Put it on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return WrittenFile(self._num_bytes, self._hash.hexdigest())


def write_bytes(path: Path, content: bytes) -> WrittenFile:
    """Write and sync a file.

    Raises:
        OSError: as of a full disk.
    """
    with path.open("wb") as file:
        hashed = _HashedFile(file)
        hashed.write(content)
        return hashed.close()


def write_runs(path: Path, runs: Runs) -> WrittenFile:
    """Write and sync runs that lie in host memory.

    Raises:
        OSError: as of a full disk.
    """
    # The widest first, so that all of them begin where their type may.
    ordered = sorted(runs.items(), key=lambda run: -run[1][1].element_size())
    header, end = {}, 0
    for name, (first, values) in ordered:
        begin, end = end, end + values.nbytes
        header[f"{name}@{first}"] = {"dtype": _NAMES[values.dtype], "shape": [values.numel()], "data_offsets": [begin, end]}
    encoded = orjson.dumps(header)
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        hashed = _HashedFile(file)
        hashed.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, (_, values) in ordered:
            if values.numel():
                hashed.write(values.view(torch.uint8).numpy().data)
        return hashed.close()


class SavedTensors(Mapping[str, Tensor]):
    """Tensors of all ranks' files, put together when they are asked for; no more is read than is."""

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        """Look at what the files hold.

        Raises:
            CorruptArtefactError: a file is not what `write_runs` writes.
        """
        self._runs: dict[str, list[tuple[int, Tensor]]] = {}
        self._where = ""
        for path in paths:
            self._where = str(path.parent)
            for name, first, values in _mapped(path):
                self._runs.setdefault(name, []).append((first, values))
        for runs in self._runs.values():
            runs.sort(key=lambda run: run[0])

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor, flat."""
        return self.read(name, 0, max(first + values.numel() for first, values in self._runs[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def below(self, prefix: str) -> SavedTensors:
        """Those whose names begin so, by the rest of their names."""
        found = SavedTensors()
        found._where = self._where
        found._runs = {name.removeprefix(prefix): runs for name, runs in self._runs.items() if name.startswith(prefix)}
        return found

    def read(self, name: str, begin: int, end: int) -> Tensor:
        """A copy of elements `begin` to `end` of a flat tensor.

        Raises:
            CorruptArtefactError: some of them are in no file.
        """
        runs = self._runs.get(name, [])
        found = torch.empty(end - begin, dtype=runs[0][1].dtype if runs else torch.float32)
        at = begin
        for first, values in runs:
            low, high = max(first, at), min(first + values.numel(), end)
            if low == at and high > low:
                found[low - begin : high - begin] = values[low - first : high - first]
                at = high
        if at < end:
            raise CorruptArtefactError(self._where, f"elements {at} to {end} of {name} are in no file", _REMEDY)
        return found


def _mapped(path: Path) -> Iterator[tuple[str, int, Tensor]]:
    """Names, first elements and values of a file, which are read from it when they are looked at."""
    with path.open("rb") as file:
        # A private copy is one that torch may take for writable; nothing writes to it.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        size = int.from_bytes(content[:8], "little")
        header: dict[str, dict[str, Any]] = orjson.loads(content[8 : 8 + size])
    except orjson.JSONDecodeError as error:
        raise CorruptArtefactError(path, "not a file of tensors", _REMEDY) from error
    for key, entry in header.items():
        name, _, first = key.rpartition("@")
        (numel,), dtype = entry["shape"], _DTYPES[entry["dtype"]]
        offset = 8 + size + entry["data_offsets"][0]
        values = torch.frombuffer(content, dtype=dtype, count=numel, offset=offset) if numel else torch.empty(0, dtype=dtype)
        yield name, int(first), values
