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
from pipelines.inputs.formats import Format

UTF8_BOM = b"\xef\xbb\xbf"
_COMPRESSED_PIECE = 1 << 18
_PLAIN_PIECE = 1 << 20
_LINE_PIECE = 1 << 16
# `zstd --long=31` writes frames that refer 2 GiB back, which the library refuses unless told otherwise.
_ZSTD_MAX_WINDOW = 1 << 31


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


def read_pieces(path: str, *, name: str, kind: Format, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield the decompressed content of a file in pieces.

    Args:
        kind: one of the JSON formats.
        start, stop: for plain files, the range whose lines are wanted: those that START in it.
    Raises:
        InputError: the compressed data is cut short or damaged.
    """
    with open_binary(path) as file:
        if kind.endswith(".gz"):
            yield from _decompress(file, name, "gzip")
        elif kind.endswith(".zst"):
            yield from _decompress(file, name, "zstd")
        else:
            yield from _line_range(file, start, stop)


def _new_decompressor(kind: str) -> _Decompressor:
    if kind == "gzip":
        return cast(_Decompressor, zlib.decompressobj(wbits=31))  # 15 for the window, 16 for a gzip header
    return cast(_Decompressor, zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW).decompressobj())


def _decompress(file: BinaryIO, name: str, kind: str) -> Iterator[bytes]:
    """All members or frames of a compressed file."""
    # A decompressor reads one member; tools that compress in parallel, or append, write many.
    decompressor = _new_decompressor(kind)
    is_between_members = True
    while data := file.read(_COMPRESSED_PIECE):
        while data:
            # gzip allows zeros after the last member: tapes and block devices pad with them.
            if is_between_members and kind == "gzip" and not data.strip(b"\0"):
                break
            is_between_members = False
            try:
                piece = decompressor.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise InputError(name, f"the {kind} data is damaged ({error})", "write or download the file again") from error
            if piece:
                yield piece
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data
                decompressor, is_between_members = _new_decompressor(kind), True
    # Both libraries take an end in the middle of a member for a pause, not for an error.
    if not is_between_members:
        raise InputError(name, f"the {kind} data is cut short", "write or download the file again")


def expansion(path: str, *, name: str, kind: Format) -> float:
    """Bytes of content for each byte of a file, judged by its first piece; 1 where it is not compressed."""
    if not kind.endswith((".gz", ".zst")):
        return 1.0
    with open_binary(path) as file:
        first = next(_decompress(file, name, "gzip" if kind.endswith(".gz") else "zstd"), b"")
        return len(first) / max(1, file.tell())


def _line_range(file: BinaryIO, start: int, stop: int | None) -> Iterator[bytes]:
    """Bytes of the lines that start in [start, stop): a line cut by `start` belongs to the range before."""
    position = _go_to_line(file, start)
    ends_in_line = False
    while stop is None or position < stop:
        piece = file.read(_PLAIN_PIECE if stop is None else min(_PLAIN_PIECE, stop - position))
        if not piece:
            return
        position += len(piece)
        ends_in_line = not piece.endswith(b"\n")
        yield piece
    while ends_in_line and (piece := file.readline(_LINE_PIECE)):
        ends_in_line = not piece.endswith(b"\n")
        yield piece


def _go_to_line(file: BinaryIO, start: int) -> int:
    """Go to the first line that starts at or after a position."""
    if start == 0:
        return 0
    # From the byte before: where that ends a line, `start` itself is the start of one.
    file.seek(start - 1)
    while (piece := file.readline(_LINE_PIECE)) and not piece.endswith(b"\n"):
        pass
    return file.tell()


def first_line_start(path: str, start: int) -> int:
    """Position of the first line that starts at or after `start` in a plain file."""
    with open_binary(path) as file:
        return _go_to_line(file, start)


def count_lines(path: str, stop: int) -> int:
    """Number of line ends before a position of a plain file."""
    count = 0
    with open_binary(path) as file:
        while stop > 0 and (piece := file.read(min(_PLAIN_PIECE, stop))):
            count += piece.count(b"\n")
            stop -= len(piece)
    return count


def hash_of_range(path: str, start: int, stop: int) -> str:
    """XXH3-128 of a range of a file's bytes, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with open_binary(path) as file:
        file.seek(start)
        while start < stop and (piece := file.read(min(_PLAIN_PIECE, stop - start))):
            digest.update(piece)
            start += len(piece)
    return digest.hexdigest()
