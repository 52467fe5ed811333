"""Bytes in: local and remote files, decompression in bounded pieces, byte ranges cut at lines."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import xxhash
import zstandard

from fastmix_data.errors import InputError

_INPUT_PIECE = 1 << 18
_HASH_PIECE = 1 << 20
_LINE_PIECE = 1 << 16


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


@contextmanager
def open_binary(path: str) -> Iterator[BinaryIO]:
    """Open a local path or an fsspec URL for reading."""
    if "://" in path:
        import fsspec

        with fsspec.open(path, "rb") as file:
            yield cast(BinaryIO, file)
    else:
        with Path(path).open("rb") as local:
            yield local


def read_pieces(path: str, *, name: str, kind: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield the decompressed content of a file in pieces.

    Args:
        kind: `jsonl`, `jsonl.gz` or `jsonl.zst`.
        start, stop: for plain files, the range whose lines are wanted: those that START in it.
    Raises:
        InputError: the compressed data is cut short or damaged.
    """
    with open_binary(path) as file:
        if kind == "jsonl":
            yield from _line_range(file, start, stop)
        elif kind == "jsonl.gz":
            yield from _decompress(file, name, "gzip")
        else:
            yield from _decompress(file, name, "zstd")


def _new_decompressor(kind: str) -> _Decompressor:
    if kind == "gzip":
        return cast(_Decompressor, zlib.decompressobj(wbits=31))
    return cast(_Decompressor, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())


def _decompress(file: BinaryIO, name: str, kind: str) -> Iterator[bytes]:
    """All members or frames of a compressed file."""
    decompressor = _new_decompressor(kind)
    fresh = True
    while data := file.read(_INPUT_PIECE):
        while data:
            if fresh and kind == "gzip" and not data.strip(b"\0"):
                break  # zero padding after the last member is allowed by gzip
            fresh = False
            try:
                piece = decompressor.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise InputError(f"{name}: the {kind} data is damaged ({error}); write or download the file again") from error
            if piece:
                yield piece
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data
                decompressor, fresh = _new_decompressor(kind), True
    if not fresh:
        raise InputError(f"{name}: the {kind} data is cut short; write or download the file again")


def _line_range(file: BinaryIO, start: int, stop: int | None) -> Iterator[bytes]:
    """Bytes of the lines that start in [start, stop): a line cut by `start` belongs to the range before."""
    if start:
        file.seek(start - 1)
        while piece := file.readline(_LINE_PIECE):
            if piece.endswith(b"\n"):
                break
    position = file.tell() if start else 0
    ends_in_line = False
    while stop is None or position < stop:
        piece = file.read(_HASH_PIECE if stop is None else min(_HASH_PIECE, stop - position))
        if not piece:
            return
        position += len(piece)
        ends_in_line = not piece.endswith(b"\n")
        yield piece
    while ends_in_line and (piece := file.readline(_LINE_PIECE)):
        ends_in_line = not piece.endswith(b"\n")
        yield piece


def first_line_start(path: str, start: int) -> int:
    """Position of the first line that starts at or after `start` in a plain file."""
    if start == 0:
        return 0
    with open_binary(path) as file:
        file.seek(start - 1)
        while piece := file.readline(_LINE_PIECE):
            if piece.endswith(b"\n"):
                break
        return file.tell()


def count_lines(path: str, stop: int) -> int:
    """Number of line ends before a position of a plain file."""
    count = 0
    with open_binary(path) as file:
        while stop > 0 and (piece := file.read(min(_HASH_PIECE, stop))):
            count += piece.count(b"\n")
            stop -= len(piece)
    return count


def hash_of_range(path: str, start: int, stop: int) -> str:
    """XXH3-128 of a range of a file's bytes, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with open_binary(path) as file:
        file.seek(start)
        while start < stop and (piece := file.read(min(_HASH_PIECE, stop - start))):
            digest.update(piece)
            start += len(piece)
    return digest.hexdigest()
