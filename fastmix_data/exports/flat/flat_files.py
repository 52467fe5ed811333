"""A pool's tokens end to end in headerless files, cut at whole windows of the trainer that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np

from fastmix_data.arrays import Bools, Int64s
from fastmix_data.atomic_files import atomic_file
from fastmix_data.exports.flat.foreign_files import NamedFile
from fastmix_data.exports.format import ExportRequest, OnTokens
from fastmix_data.exports.part_tokens import PartTokens, label_remarks, read_part
from fastmix_data.exports.pools import PartRange, common_dtype, cut_into_files, pools_of
from fastmix_data.foreign.storage import is_foreign
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.messages import and_more
from fastmix_data.shards.examples import is_padding


@dataclass(frozen=True)
class FlatFile:
    """A stretch of a pool's tokens that becomes a file. Formats derive their tasks from it.

    Attributes:
        number: of the file within its pool.
        ranges: tokens of parts that it holds, in order; a file may end within a part.
        dtype: of the tokens, the same in all files: readers are told it once.
        any_masks: whether any source of the manifest has a mask, not only this one.
    """

    pool: str
    number: int
    ranges: tuple[PartRange, ...]
    dtype: str
    any_masks: bool

    @property
    def name(self) -> str:
        """Unique in the export: a pool's name has no dot."""
        return f"{self.pool}.{self.number:05d}"

    @property
    def num_tokens(self) -> int:
        """Tokens of the file."""
        return sum(stop - start for _, start, stop in self.ranges)


@dataclass(frozen=True)
class Documents:
    """Documents of a file in their order, all of shape (D,); of sources with a mask these are examples, and the padding between.

    Attributes:
        start_D: first token in the file. A document ends where the next one begins, the last one with the file.
        is_padding_D: whether it is none, but padding.
        part_D: number of the manifest's part that it begins in.
        position_D: its first token in that part's shard. A document that the file cuts begins at the cut.
    """

    start_D: Int64s
    is_padding_D: Bools
    part_D: Int64s
    position_D: Int64s


_File = TypeVar("_File", bound=FlatFile)
_Named = TypeVar("_Named", bound=NamedFile)
Files = Mapping[str, Sequence[FlatFile | NamedFile]]


def flat_files(
    request: ExportRequest, kind: type[_File], *, window_tokens: int, named: Mapping[str, Sequence[_Named]]
) -> dict[str, Sequence[_File | _Named]]:
    """The files of each pool, in the order of `pools_of`.

    Args:
        kind: the format's task.
        named: foreign files that some pools are of already, so that none is written.
        window_tokens: every file but a pool's last is a whole number of windows, so that a reader who drops what is left after a
            file's last window drops less than one of each pool.
    """
    dtype, any_masks = common_dtype(request.manifest), request.manifest.has_masks
    windows_per_file = max(1, request.max_file_bytes // (window_tokens * dtype.itemsize))
    written: dict[str, list[_File]] = {}
    for pool, number, ranges in cut_into_files(request.manifest, unit="tokens", size=windows_per_file * window_tokens):
        if pool.name not in named:
            written.setdefault(pool.name, []).append(kind(pool.name, number, ranges, dtype.str, any_masks))
    return {pool.name: named.get(pool.name) or written[pool.name] for pool in pools_of(request.manifest)}


def write_flat(file: FlatFile, request: ExportRequest, *, tokens: Path, mask: Path | None, on_tokens: OnTokens) -> Documents:
    """Write one file's tokens, part by part.

    Args:
        mask: for a byte a token, 1 where it carries loss where it is the label; all 1 in sources without a mask.
    """
    manifest = request.manifest
    found: list[Documents] = []
    num_written = 0
    before: Part | None = None
    last_token = -1
    with ExitStack() as stack:
        tokens_out = stack.enter_context(atomic_file(tokens))
        mask_out = None if mask is None else stack.enter_context(atomic_file(mask))
        for number, start, stop in file.ranges:
            part = manifest.parts[number]
            # From the block of the token before: whether a document begins at the first, and whether that is padding, is told by both.
            first = max(0, start - 1) // manifest.block_tokens * manifest.block_tokens
            own = read_part(manifest, part, root=request.root, first=first, stop=stop)
            here = slice(start - first, stop - first)
            tokens_out.write(own.tokens_T[here].astype(file.dtype, casting="safe").data)
            if mask_out is not None:
                carries_T = np.ones(len(own.tokens_T), np.bool_) if own.carries_loss_T is None else own.carries_loss_T
                mask_out.write(carries_T[here].data)
            goes_on = before is not None and _continues(manifest, before, part) and last_token != manifest.eos_id
            at_D, is_padding_D = _documents(own, here, manifest=manifest, goes_on=goes_on)
            position_D = part.block_start * manifest.block_tokens + first + at_D
            found.append(Documents(num_written + at_D - here.start, is_padding_D, np.full_like(at_D, number), position_D))
            num_written, before, last_token = num_written + stop - start, part, int(own.tokens_T[-1])
            on_tokens(stop - start)
    return Documents(*(np.concatenate([getattr(some, f.name) for some in found]) for f in fields(Documents)))


def _continues(manifest: Manifest, before: Part, part: Part) -> bool:
    """Whether a part's first token comes right after the last one of the part before it in the list."""
    # The last token of a partition is the only one that is followed by none; after any other shard of an epoch comes the next.
    is_next = before.pool == part.pool and manifest.has_every_block(part.pool)
    if is_foreign(before.storage) or is_foreign(part.storage):
        return is_next and before.path == part.path and before.first_token + before.num_tokens == part.first_token
    return is_next and before.num_labels == before.num_tokens


def _documents(own: PartTokens, here: slice, *, manifest: Manifest, goes_on: bool) -> tuple[Int64s, Bools]:
    """First tokens of documents in a stretch of what was read of a part, counted from its start, and which are padding."""
    begins_T = np.zeros(len(own.tokens_T), np.bool_)
    if own.starts_T is not None:
        begins_T |= own.starts_T != 0
    else:
        begins_T[1:] = own.tokens_T[:-1] == manifest.eos_id
    if manifest.sequence_sources:  # one sequence has nothing to do with the next
        begins_T[:: manifest.block_tokens] = True
    begins_T[here.start] |= not goes_on
    at_D = here.start + np.flatnonzero(begins_T[here])
    is_padding_D = np.zeros(len(at_D), np.bool_) if own.starts_T is None else is_padding(own.starts_T)[at_D]
    return at_D, is_padding_D


def num_windows(files: Files, *, window_tokens: int) -> Mapping[str, int]:
    """Whole windows of one pass over each pool: none goes on from one file to the next."""
    return {name: sum(file.num_tokens // window_tokens for file in of_pool) for name, of_pool in files.items()}


def window_remarks(manifest: Manifest, files: Files, *, window_tokens: int) -> list[str]:
    """What a reader of windows that do not overlap leaves out, in sentences."""
    of_pools = num_windows(files, window_tokens=window_tokens)
    windows = sum(pool.repeats * of_pools[pool.name] for pool in pools_of(manifest))
    unread = manifest.num_tokens - windows * window_tokens
    remarks = [
        *label_remarks(manifest),
        f"windows do not overlap in this format, so the first token of each of {windows} windows is never predicted",
    ]
    if unread:
        remarks.append(
            f"{unread} of {manifest.num_tokens} tokens are less than a window of {window_tokens} at the end of their file, and are not read"
        )
    named = [name for name, of_pool in files.items() if isinstance(of_pool[0], NamedFile)]
    if named:
        remarks.append(
            f"the imported files of {and_more(named, shown=8)} are read where they lie, each to its last whole window; "
            "--files copy writes their tokens end to end, so that only the last file of a source ends in less than one"
        )
    return remarks
