"""The strided shard: a WebDataset tar that is also an array.

One sample is one block of `block_tokens + 1` tokens: the block's own tokens and one more, the label of the last position (it is
the first token of the next block). A sample is `KEY.tokens.npy`; where only part of the tokens carry loss, `KEY.loss_mask.npy` lies
beside it, and `KEY.starts.npy`, which says where examples begin. All samples have the same size, so they lie at a constant stride
and a shard opens as one strided array over a memory map: no index, no copy, O(1) seek. `webdataset` reads the same file with
`wds.WebDataset(path).decode()`.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Mask, Starts, Tokens
from fastmix_data.atomic_files import atomic_file
from fastmix_data.errors import CorruptArtefactError

_HEADER = 512  # bytes of a tar header; members are padded to its multiples
_END = 1024  # two empty headers end a tar
_CHECKSUM = slice(148, 156)  # of a USTAR header
_KEY_DIGITS, _TAG_DIGITS = 10, 5
NAME_BYTES = 100  # of a tar header, which begins with it
_WRITTEN_AT_ONCE = 1 << 18
TOKENS_MEMBER = "tokens.npy"
MASK_MEMBER = "loss_mask.npy"
STARTS_MEMBER = "starts.npy"
EXAMPLE_START, PADDING_START = 1, 2  # values of `starts.npy`; 0 elsewhere


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Smallest little-endian dtype that holds every token id: uint16 or uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def _npy_header(dtype: np.dtype[np.unsignedinteger], length: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    return header.getvalue()


@dataclass(frozen=True)
class _Member:
    """Where one member lies within a sample: all sizes in bytes."""

    name: str
    dtype: np.dtype[np.unsignedinteger]
    npy_header: bytes
    length: int
    offset: int

    @property
    def size(self) -> int:
        return len(self.npy_header) + self.length * self.dtype.itemsize

    @property
    def data_offset(self) -> int:
        return self.offset + _HEADER + len(self.npy_header)

    @property
    def end(self) -> int:
        return self.offset + _HEADER + -(-self.size // 512) * 512


@dataclass(frozen=True)
class ShardLayout:
    """Sizes of every shard with the same dtype, block length and members."""

    block_tokens: int
    dtype: np.dtype[np.unsignedinteger]
    has_mask: bool = False

    @cached_property
    def members(self) -> tuple[_Member, ...]:
        """The members of one sample, in file order."""
        byte: np.dtype[np.unsignedinteger] = np.dtype("u1")
        named = [(TOKENS_MEMBER, self.dtype), *([(MASK_MEMBER, byte), (STARTS_MEMBER, byte)] if self.has_mask else [])]
        length, members, offset = self.block_tokens + 1, [], 0
        for name, dtype in named:
            members.append(_Member(name, dtype, _npy_header(dtype, length), length, offset))
            offset = members[-1].end
        return tuple(members)

    @cached_property
    def stride(self) -> int:
        """Bytes from one sample to the next."""
        return self.members[-1].end

    def num_bytes(self, num_blocks: int) -> int:
        """Size of a shard file."""
        return num_blocks * self.stride + _END

    def max_blocks(self, max_shard_bytes: int) -> int:
        """Blocks of the largest shard within `max_shard_bytes`; at least one."""
        return max(1, (max_shard_bytes - _END) // self.stride)


@cache
def shard_layout(block_tokens: int, dtype: str, has_mask: bool) -> ShardLayout:
    """The layout that a row of a catalog or manifest speaks of. Kept: rows are 100,000, layouts two or three, and making one is slow."""
    return ShardLayout(block_tokens, np.dtype(dtype), has_mask)


@dataclass(frozen=True)
class WrittenShard:
    """What the catalog records of a shard's file."""

    num_blocks: int
    num_bytes: int
    sha256: str


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0  # no owner and no time: equal tokens give equal bytes
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _decimal_digits(numbers_N: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint8]:
    digits_ND: npt.NDArray[np.uint8] = (numbers_N[:, None] // 10 ** np.arange(width - 1, -1, -1, dtype=np.int64) % 10).astype(
        np.uint8
    )
    return digits_ND


def _fill_headers(
    view_NS: npt.NDArray[np.uint8],
    member: _Member,
    key_prefix: str,
    numbers_N: npt.NDArray[np.int64],
    tags_N: npt.NDArray[np.int64] | None,
) -> None:
    """Write the tar headers of one member of all samples: digits of the block number and of the tag, then the checksum."""
    num_blocks, start = view_NS.shape[0], len(key_prefix)
    # Headers of a shard differ in the digits of their names and in the checksum, so `tarfile` makes one, and NumPy the others from it.
    zeros = "0" * _KEY_DIGITS + ("" if tags_N is None else "-" + "0" * _TAG_DIGITS)
    template = bytearray(_tar_header(f"{key_prefix}{zeros}.{member.name}", member.size))
    template[_CHECKSUM] = b" " * 8  # the checksum counts its own field as blanks
    headers_NH = view_NS[:, member.offset : member.offset + _HEADER]
    headers_NH[:] = np.frombuffer(template, np.uint8)
    digits_ND = np.zeros((num_blocks, len(zeros)), np.uint8)
    digits_ND[:, :_KEY_DIGITS] = _decimal_digits(numbers_N, _KEY_DIGITS)
    if tags_N is not None:
        digits_ND[:, -_TAG_DIGITS:] = _decimal_digits(tags_N, _TAG_DIGITS)
    headers_NH[:, start : start + len(zeros)] += digits_ND
    # The checksum is the plain sum of a header's bytes: that of the template, whose digits are "0", and the digits themselves.
    checksums_N = sum(template) + digits_ND.sum(axis=1, dtype=np.int64)
    octal_N6 = (checksums_N[:, None] >> np.arange(15, -1, -3) & 7).astype(np.uint8) + ord("0")
    end_N2 = np.broadcast_to(np.frombuffer(b"\0 ", np.uint8), (num_blocks, 2))  # how tar has always ended this field
    headers_NH[:, _CHECKSUM] = np.concatenate([octal_N6, end_N2], axis=1)


class BlankBlocks(NamedTuple):
    """The bytes of some blocks of a shard, and their arrays as views to be filled, each of shape (num_blocks, block_tokens + 1)."""

    buffer: npt.NDArray[np.uint8]
    tokens_NT: Tokens
    loss_mask_NT: Mask | None
    starts_NT: Starts | None


def blank_blocks(
    numbers: range, *, layout: ShardLayout, key_prefix: str, tags_N: npt.NDArray[np.int64] | None = None, ends: bool = True
) -> BlankBlocks:
    """Lay out everything of a strided shard's blocks but the values; these are 0.

    Args:
        numbers: of the blocks in their shard.
        key_prefix: samples are named `key_prefix` + ten digits; unique in the corpus, without a dot.
        tags_N: a number below 100,000 for each sample, which its key ends with, after a dash.
        ends: whether the shard ends with these blocks.
    """
    assert "." not in key_prefix
    num_blocks = len(numbers)
    buffer = np.zeros(layout.num_bytes(num_blocks) - (0 if ends else _END), np.uint8)
    view_NS = buffer[: num_blocks * layout.stride].reshape(num_blocks, layout.stride)
    for member in layout.members:
        _fill_headers(view_NS, member, key_prefix, np.arange(numbers.start, numbers.stop, dtype=np.int64), tags_N)
        view_NS[:, member.offset + _HEADER : member.data_offset] = np.frombuffer(member.npy_header, np.uint8)
    tokens_NT, *rest = (_strided_view(buffer, layout, member, num_blocks) for member in layout.members)
    mask_NT, starts_NT = (values_NT.view(np.uint8) for values_NT in rest) if layout.has_mask else (None, None)
    return BlankBlocks(buffer, tokens_NT, mask_NT, starts_NT)


def encode_shard(
    tokens: Tokens,
    *,
    layout: ShardLayout,
    key_prefix: str,
    num_blocks: int,
    loss_mask: Mask | None = None,
    starts: Starts | None = None,
    first_number: int = 0,
) -> npt.NDArray[np.uint8]:
    """Lay out tokens as the bytes of a strided shard.

    Args:
        tokens: `num_blocks * block_tokens + 1` tokens; the last is the label of the last block's last position.
        key_prefix: samples are named `key_prefix` + ten digits, counting from `first_number`; unique in the corpus, without a dot.
        loss_mask: same length as `tokens`, 1 where a token carries loss; required exactly if the layout has one.
        starts: same length; `EXAMPLE_START` where an example begins, `PADDING_START` where padding does; required with the mask.
    """
    assert (loss_mask is not None) == (starts is not None) == layout.has_mask
    assert len(tokens) == num_blocks * layout.block_tokens + 1
    numbers = range(first_number, first_number + num_blocks)
    blank = blank_blocks(numbers, layout=layout, key_prefix=key_prefix)
    for view_NT, values in zip(blank[1:], (tokens, loss_mask, starts), strict=True):
        if view_NT is None or values is None:
            continue
        # Rows of T + 1 values, T apart: each block's extra token is the next one's first, without a copy of either.
        view_NT[:] = np.lib.stride_tricks.as_strided(
            np.ascontiguousarray(values, view_NT.dtype),
            shape=view_NT.shape,
            strides=(layout.block_tokens * view_NT.itemsize, view_NT.itemsize),
        )
    return blank.buffer


def _layout_of(tokens_member: bytes, *, has_mask: bool) -> ShardLayout:
    """Layout of a shard from the bytes of a `tokens.npy`. Compared, not parsed: NumPy's parser fails on damage in many ways."""
    for dtype in (np.dtype("<u2"), np.dtype("<u4")):
        header = tokens_member[: len(_npy_header(dtype, 1))]
        length, rest = divmod(len(tokens_member) - len(header), dtype.itemsize)
        if not rest and length > 1 and header == _npy_header(dtype, length):
            return ShardLayout(length - 1, dtype, has_mask)
    raise ValueError("its first member is not an array of tokens")


def _strided_view(
    buffer: npt.NDArray[np.uint8] | mmap.mmap, layout: ShardLayout, member: _Member, num_blocks: int
) -> npt.NDArray[np.unsignedinteger]:
    return np.ndarray(
        (num_blocks, layout.block_tokens + 1),
        member.dtype,
        buffer,
        member.data_offset,
        (layout.stride, member.dtype.itemsize),
    )


def write_shard(path: Path, buffer: npt.NDArray[np.uint8], *, layout: ShardLayout) -> WrittenShard:
    """Write an encoded shard atomically."""
    return write_blocks(path, [buffer], layout=layout)


def write_blocks(path: Path, buffers: Iterable[npt.NDArray[np.uint8]], *, layout: ShardLayout) -> WrittenShard:
    """Write a shard atomically, given its blocks piece by piece."""
    digest, num_bytes = hashlib.sha256(), 0
    with atomic_file(path) as file:
        for buffer in buffers:
            num_bytes += len(buffer)
            # Hashed as it is written, in pieces that the processor's cache holds: they come from memory once for both.
            for start in range(0, len(buffer), _WRITTEN_AT_ONCE):
                piece = buffer[start : start + _WRITTEN_AT_ONCE].data
                digest.update(piece)
                file.write(piece)
    return WrittenShard((num_bytes - _END) // layout.stride, num_bytes, digest.hexdigest())


def cut_sequences(blocks_NT: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Blocks cut into sequences of a length that divides them: a view of shape (num_blocks, block_tokens / length, length + 1)."""
    # Sequences overlap by one token like blocks do, so any length that divides the block is another view of the same bytes.
    stride, itemsize = blocks_NT.strides
    num_blocks, stored = blocks_NT.shape
    return np.lib.stride_tricks.as_strided(
        blocks_NT,
        shape=(num_blocks, (stored - 1) // length, length + 1),
        strides=(stride, length * itemsize, itemsize),
        writeable=False,
    )


class SequenceViews(NamedTuple):
    """A shard cut into sequences, as views of shape (num_blocks, block_tokens / length, length + 1)."""

    tokens: Tokens
    mask: Mask | None
    starts: Starts | None


class StridedShard:
    """A shard opened as arrays over its memory map.

    Attributes:
        tokens_NT: (num_blocks, block_tokens + 1), uint16 or uint32.
        loss_mask_NT, starts_NT: same shape, uint8, or None.
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        """Map a shard.

        Raises:
            CorruptArtefactError: the file is missing, cut short, or not a shard of this layout.
        """
        self.path, self.layout = path, layout
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError) as error:
            raise CorruptArtefactError(path, "the shard is missing or empty", "run `fastmix preprocess` again") from error
        # Size and first sample are checked, not every header: opening stays O(1), and `fastmix verify` reads the rest.
        self.num_blocks, rest = divmod(len(self._map) - _END, layout.stride)
        if rest or self.num_blocks < 1 or not self._begins_as_expected():
            problem = f"not a shard of {layout.block_tokens}-token blocks of {layout.dtype}"
            raise CorruptArtefactError(path, problem, "`fastmix verify` tells which are")
        views = [_strided_view(self._map, layout, member, self.num_blocks) for member in layout.members]
        self.tokens_NT: Tokens = views[0]
        self.loss_mask_NT: Mask | None = views[1].view(np.uint8) if layout.has_mask else None
        self.starts_NT: Starts | None = views[2].view(np.uint8) if layout.has_mask else None

    def _begins_as_expected(self) -> bool:
        return all(
            self._map[member.offset + _HEADER : member.data_offset] == member.npy_header
            and self._map[member.offset : member.offset + 100].rstrip(b"\0").endswith(f".{member.name}".encode())
            for member in self.layout.members
        )

    @classmethod
    def detect(cls, path: Path) -> Self:
        """Open a shard whose layout is not known, reading it from the first sample.

        Raises:
            CorruptArtefactError: the file is not a strided shard.
        """
        try:
            with tarfile.open(path, "r:") as tar:
                members = [info for info, _ in zip(tar, range(2), strict=False)]
                first = tar.extractfile(members[0])
                assert first is not None
                layout = _layout_of(first.read(), has_mask=len(members) > 1 and members[1].name.endswith(MASK_MEMBER))
        except FileNotFoundError:
            raise
        except (tarfile.TarError, ValueError, OSError, AssertionError, IndexError) as error:
            raise CorruptArtefactError(path, f"not a strided shard ({error})", "give one that fastmix wrote") from error
        return cls(path, layout)

    def sequences(self, length: int) -> SequenceViews:
        """All sequences of a length that divides the block."""
        mask, starts = (None if part is None else cut_sequences(part, length) for part in (self.loss_mask_NT, self.starts_NT))
        return SequenceViews(cut_sequences(self.tokens_NT, length), mask, starts)

    def key(self, block: int) -> str:
        """WebDataset key of a block."""
        start = block * self.layout.stride
        return self._map[start : start + 100].rstrip(b"\0").decode(errors="replace").removesuffix(f".{TOKENS_MEMBER}")

    def tag_digits_ND(self) -> npt.NDArray[np.uint8]:
        """The digits, as ASCII, of the tags that the samples' keys end with, shape (num_blocks, 5): a view of the file."""
        offset = len(self.key(0)) - _TAG_DIGITS
        return np.ndarray((self.num_blocks, _TAG_DIGITS), np.uint8, self._map, offset, (self.layout.stride, 1))


def tag_digits(name: bytes) -> npt.NDArray[np.uint8]:
    """The digits, as ASCII, of the tag that a sample's key ends with, given the name of its first member, shape (5,)."""
    key = name.rstrip(b"\0").removesuffix(f".{TOKENS_MEMBER}".encode())
    return np.frombuffer(key[-_TAG_DIGITS:], np.uint8)


def cut_shard(shard: StridedShard, *, start: int, stop: int) -> bytes:
    """Bytes of a shard that holds blocks `start` to `stop` of another, keys unchanged."""
    stride = shard.layout.stride
    return shard._map[start * stride : stop * stride] + b"\0" * _END
