"""Which token files an export has, and the task that writes one: a shard as it lies, or tokens of several parts one after another.

A shard can be the `.bin` itself, because an index gives byte offsets and the blocks of a shard lie at a constant stride. Its sequences
are blocks then. Converted files hold nothing but tokens, and their sequences are documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.atomic_files import atomic_file
from fastmix_data.exports.bring import bring
from fastmix_data.exports.format import ExportRequest, OnTokens, Receipt
from fastmix_data.exports.nvidia.index_file import write_index
from fastmix_data.exports.part_tokens import PartTokens, check_unchanged, read_part
from fastmix_data.exports.pools import cut_evenly, pools_of
from fastmix_data.foreign.mds import is_mds
from fastmix_data.foreign.storage import FLAT
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part

# Megatron reads a whole number of windows of each file: one more or less is under 0.4% of a file of this many blocks, and a file of less
# than a window would fill one with its own repeats. Parts with fewer blocks are converted and merged, whatever was asked for.
FEWEST_REFERENCED_BLOCKS = 256
_LARGEST_FILE_BYTES = 1 << 31  # lengths of sequences are 32-bit numbers of tokens


@dataclass(frozen=True)
class TokenFile:
    """A `.bin` and its `.idx`, as Megatron knows them: by the path without an ending.

    Attributes:
        prefix: relative to the export's folder.
        repeats: how often a run reads it.
        parts: what it holds, in order; all of one file where the `.bin` is that.
        is_shard: whether the `.bin` is the shard, or the foreign file, itself.
    """

    prefix: str
    repeats: int
    parts: tuple[Part, ...]
    is_shard: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass."""
        return sum(part.num_tokens for part in self.parts)

    def num_windows(self, sequence_length: int) -> int:
        """Windows of `sequence_length` tokens and a label that Megatron cuts from all its repeats."""
        return (self.repeats * self.num_tokens - 1) // sequence_length


def train_files(request: ExportRequest) -> list[TokenFile]:
    """The files of a manifest's training tokens, pool by pool: referenced shards first, what is converted after them."""
    found: list[TokenFile] = []
    for pool in pools_of(request.manifest):
        fewest = inf if request.files == "copy" else FEWEST_REFERENCED_BLOCKS
        by_file: dict[str, list[Part]] = {}
        for part in pool.parts:
            by_file.setdefault(part.path, []).append(part)  # a foreign file may be many parts, and is one `.bin`
        as_is = [tuple(parts) for parts in by_file.values() if _is_worth_an_index(parts, fewest)]
        taken = {parts[0].path for parts in as_is}
        rest = [part for part in pool.parts if part.path not in taken]
        groups = [*((parts, True) for parts in as_is), *((group, False) for group in _merged(request, rest))]
        found += [
            TokenFile(f"train/{pool.name}-{number:05d}", pool.repeats, parts, is_shard)
            for number, (parts, is_shard) in enumerate(groups)
        ]
    return found


def _is_worth_an_index(parts: Sequence[Part], fewest: float) -> bool:
    # Tokens of MDS have other bytes between them, at no constant stride.
    return not is_mds(parts[0].storage) and sum(part.num_blocks for part in parts) >= fewest


def valid_files(request: ExportRequest, parts: Mapping[str, Sequence[Part]]) -> list[TokenFile]:
    """The files of each source's held-out tokens, which are few, so they are always converted; one of each up to `max_file_bytes`."""
    return [
        TokenFile(f"valid/{source}-{number:05d}", 1, group, False)
        for source, shards in parts.items()
        for number, group in enumerate(_merged(request, shards))
    ]


def _merged(request: ExportRequest, parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
    """Parts in groups that each fit into one file, cut at blocks where a file is full."""
    if not parts:
        return
    block_tokens, largest = request.manifest.block_tokens, min(request.max_file_bytes, _LARGEST_FILE_BYTES)
    size = max(1, largest // (block_tokens * np.dtype(parts[0].dtype).itemsize))
    for ranges in cut_evenly([part.num_blocks for part in parts], size=size):
        yield tuple(_cut(parts[number], start, stop, block_tokens=block_tokens) for number, start, stop in ranges)


def _cut(part: Part, start: int, stop: int, *, block_tokens: int) -> Part:
    """Blocks `start` to `stop` of a part."""
    before, most = start * block_tokens, (stop - start) * block_tokens
    return dataclasses.replace(
        part,
        block_start=part.block_start + start,
        block_stop=part.block_start + stop,
        num_tokens=min(part.num_tokens - before, most),
        num_labels=min(part.num_labels - before, most),
    )


@dataclass(frozen=True)
class WriteTokenFile:
    """Write one file and its index.

    Attributes:
        check_shards: hash the shards that are read; those of training parts have been before.
    """

    file: TokenFile
    check_shards: bool = False

    @property
    def name(self) -> str:
        """The prefix, which is unique."""
        return self.file.prefix.replace("/", "-")

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass."""
        return self.file.num_tokens

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Write `.bin` and `.idx`; see `read_part` for what it raises."""
        names = [f"{self.file.prefix}.bin", f"{self.file.prefix}.idx"]
        tokens_path, index_path = (request.directory / name for name in names)
        if self.file.is_shard:
            parts, manifest = self.file.parts, request.manifest
            for part in parts:
                shard = manifest.open(part, root=request.root)
            bring(shard.path, names[0], directory=request.directory, files=request.files)
            lengths_S = np.concatenate([_block_lengths(manifest, part) for part in parts])
            offsets_S = np.concatenate([_block_offsets(manifest, part) for part in parts])
            on_tokens(self.num_tokens)
        else:
            found = []
            with atomic_file(tokens_path) as file:
                for part in self.file.parts:
                    if self.check_shards:
                        check_unchanged(part, root=request.root)
                    content = read_part(request.manifest, part, root=request.root)
                    file.write(content.tokens_T.data)
                    found.append(_unit_lengths(request.manifest, part, content))
                    on_tokens(part.num_tokens)
            lengths_S = np.concatenate(found)
            offsets_S = (np.cumsum(lengths_S) - lengths_S) * np.dtype(self.file.parts[0].dtype).itemsize
        write_index(index_path, dtype=self.file.parts[0].dtype, lengths_S=lengths_S, offsets_S=offsets_S)
        return {"files": names}


def _unit_lengths(manifest: Manifest, part: Part, content: PartTokens) -> Int64s:
    """Tokens of each sequence of a converted part, shape (S,): documents, whose last token is the end of text.

    Where examples are packed into windows, an end of text may also stand within one, so those stay in their blocks.
    """
    if part.has_mask:
        return _block_lengths(manifest, part)
    end_D = np.flatnonzero(content.tokens_T == manifest.eos_id) + 1
    lengths_S: Int64s = np.diff(end_D, prepend=0, append=part.num_tokens).astype(np.int64)
    return lengths_S[lengths_S > 0]


def _block_offsets(manifest: Manifest, part: Part) -> Int64s:
    """Where the tokens of each block begin in its file, in bytes, shape (num_blocks,)."""
    block_B, layout = np.arange(part.block_start, part.block_stop, dtype=np.int64), manifest.layout(part)
    if part.storage == FLAT:
        return (part.first_token + block_B * manifest.block_tokens) * layout.dtype.itemsize
    return block_B * layout.stride + layout.members[0].data_offset


def _block_lengths(manifest: Manifest, part: Part) -> Int64s:
    """Tokens of each block of a part, of which only the last can be short, shape (num_blocks,)."""
    lengths_S = np.full(part.num_blocks, manifest.block_tokens, np.int64)
    lengths_S[-1] = part.num_tokens - (part.num_blocks - 1) * manifest.block_tokens
    return lengths_S
