"""A manifest's run as strided shards of its own, whose sequences lie in the order that they are read in: a materialized manifest.

A sample is one sequence of the run, and its key ends with the number of its source. Beside the shards lies a manifest over them, which
is read from front to back, and a copy of the one that the run is of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Int64s
from fastmix_data.atomic_files import atomic_file
from fastmix_data.errors import MismatchError
from fastmix_data.exports.format import ExportRequest, Keeps, OnTokens, Receipt
from fastmix_data.exports.pools import drawn_rows
from fastmix_data.manifest.manifest import Manifest, ManifestPhase, ManifestPool, ManifestSource, save_manifest
from fastmix_data.manifest.order import Located
from fastmix_data.manifest.parts import Part
from fastmix_data.shards.open_shard import max_open_shards
from fastmix_data.shards.shard_format import BlankBlocks, SequenceViews, ShardLayout, blank_blocks, write_blocks
from fastmix_data.shards.table_rows import TableRows, column_of, distinct
from fastmix_data.workdir import ManifestFolder, MaterializedFolder

SOURCE = "run"
# Small enough that the allocator gives the same memory out again and again; fresh pages would cost more than all that is done in them.
_GATHERED_BYTES = 4 << 20


class _Shards:
    name = "shards"
    reader = "fastmix's own loader; webdataset 1.0"
    writes = "shards of the run's sequences in its order, and a manifest over them"
    runs_in: Literal["threads", "processes"] = "threads"
    keeps = Keeps(
        order="yes",
        shares="yes",
        epochs="yes",
        masks="yes, as `loss_mask.npy`",
        examples="yes, as `starts.npy`",
        phases="yes",
        begun_epochs="yes",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        manifest = request.manifest
        if manifest.sequence_sources:
            raise MismatchError(manifest.path, "its shards are in the order of the run already", "read or copy them as they are")
        assert request.order.num_sequences  # refuses a length that does not fit
        labels_P = column_of(manifest.parts, "num_labels")
        padded_P = (-labels_P % request.length) * column_of(manifest.parts, "repeats")
        padded = int(padded_P[drawn_rows(manifest)].sum())
        if not padded or layout_of(request).has_mask:
            return ()
        # Of an epoch that was begun before, only the order knows which sequences are left.
        count = f"up to {padded}" if manifest.starts_within_an_epoch else str(padded)
        rows = "the parts of the manifest that is written count them"
        return (f"{count} labels beyond the last token of a run are padding that carries no mask in the shards; {rows}",)

    def tasks(self, request: ExportRequest) -> Sequence[_WriteShard]:
        num_sequences = request.order.num_sequences
        at_most = layout_of(request).max_blocks(request.max_file_bytes)
        return [
            _WriteShard(number, start, min(start + at_most, num_sequences), request.length)
            for number, start in enumerate(range(0, num_sequences, at_most))
        ]

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:
        folder = MaterializedFolder(request.directory)
        given = ManifestFolder(request.manifest.directory)
        copies = [(given.parts, folder.origin.parts), (given.manifest, folder.origin.manifest)]
        for path, copy in copies:
            with atomic_file(copy) as file:
                file.write(path.read_bytes())
        written = save_manifest(_manifest_over(request, [receipts[task.name] for task in self.tasks(request)]))
        names = (written.path, folder.parts, *(copy for _, copy in copies))
        return [name.relative_to(request.directory).as_posix() for name in names]


FORMAT = _Shards()


def layout_of(request: ExportRequest) -> ShardLayout:
    """Of every shard that is written. With masks where any source of the run has one, for a sample tells them by its members."""
    dtype = np.result_type(*distinct(request.manifest.parts, "dtype"))
    return ShardLayout(request.length, dtype, has_mask=request.manifest.example_tokens is not None)


@dataclass(frozen=True)
class _WriteShard:
    """Sequences `start` to `stop` of the run."""

    number: int
    start: int
    stop: int
    length: int

    @property
    def name(self) -> str:
        return f"{SOURCE}-{self.number:06d}"

    @property
    def num_tokens(self) -> int:
        return (self.stop - self.start) * self.length

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Gather the sequences and write them, some megabytes at a time."""
        located, layout = request.order.locate(np.arange(self.start, self.stop)), layout_of(request)
        path = MaterializedFolder(request.directory).shard(self.number)
        written = write_blocks(path, self._gathered(located, request, on_tokens), layout=layout)
        short = np.flatnonzero(located.num_labels_N < self.length)
        return {
            "files": [path.relative_to(request.directory).as_posix()],
            "sha256": written.sha256,
            "bytes": written.num_bytes,
            "num_blocks": written.num_blocks,
            "short": [short.tolist(), located.num_labels_N[short].tolist()],
        }

    def _gathered(self, located: Located, request: ExportRequest, on_tokens: OnTokens) -> Iterator[npt.NDArray[np.uint8]]:
        layout, num_blocks = layout_of(request), self.stop - self.start
        at_once = max(1, _GATHERED_BYTES // layout.stride)

        @lru_cache(maxsize=max_open_shards())
        def views_of(part: int) -> SequenceViews:
            return request.manifest.open(request.manifest.parts[part], root=request.root).sequences(self.length)

        for first in range(0, num_blocks, at_once):
            numbers = range(first, min(first + at_once, num_blocks))
            here = Located(*(getattr(located, f.name)[first : numbers.stop] for f in dataclasses.fields(located)))
            blank = blank_blocks(
                numbers, layout=layout, key_prefix=f"{self.name}-", tags_N=here.source_N, ends=numbers.stop == num_blocks
            )
            # By place, so that each shard is gone through from front to back.
            rows_N = np.lexsort((here.within_N, here.block_N, here.part_N))
            for rows in np.split(rows_N, np.flatnonzero(np.diff(here.part_N[rows_N])) + 1):
                _copy(views_of(int(here.part_N[rows[0]])), here, rows, into=blank)
            on_tokens(len(numbers) * self.length)
            yield blank.buffer


def _copy(views: SequenceViews, located: Located, rows: Int64s, *, into: BlankBlocks) -> None:
    block, within = located.block_N[rows], located.within_N[rows]
    tokens: Any = views.tokens
    if isinstance(tokens, np.ndarray):
        into.tokens_NT[rows] = tokens[block, within]
    else:  # of foreign files whose tokens do not lie end to end: they answer one sequence at a time
        for row, *place in zip(rows.tolist(), block.tolist(), within.tolist(), strict=True):
            into.tokens_NT[row] = tokens[tuple(place)]
    if into.loss_mask_NT is None or into.starts_NT is None:
        return
    if views.mask is None or views.starts is None:
        # Beside sources with masks, one without: all of its labels carry loss, and nothing begins within its sequences.
        into.loss_mask_NT[rows] = np.arange(into.loss_mask_NT.shape[1]) <= located.num_labels_N[rows, None]
        return
    into.loss_mask_NT[rows] = views.mask[block, within] != 0
    into.starts_NT[rows] = views.starts[block, within]


def _manifest_over(request: ExportRequest, receipts: Sequence[Receipt]) -> Manifest:
    """The shards as parts that end wherever a sequence is short, for only the last block of a part can be."""
    given = request.manifest
    layout = layout_of(request)
    parts = TableRows.of(Part, (part for receipt in receipts for part in _parts(receipt, layout)))
    num_tokens = int(column_of(parts, "num_tokens").sum())
    source = ManifestSource(
        SOURCE,
        weight=1.0,
        share=1.0,
        num_tokens=num_tokens,
        unique_tokens=num_tokens,
        tokens_before=0,
        epochs=1.0,
        max_epochs=1.0,
        capped=False,
    )
    phase = ManifestPhase(
        given.token_budget,
        num_tokens,
        weights={SOURCE: 1.0},
        asked={SOURCE: num_tokens},
        tokens={SOURCE: num_tokens},
        shares={SOURCE: 1.0},
    )
    return dataclasses.replace(
        given,
        num_tokens=num_tokens,
        num_shards=len(receipts),
        block_tokens=request.length,
        dtype=layout.dtype.str,
        root=".",
        after=None,
        sources=(source,),
        phases=(phase,),
        pools=(ManifestPool(SOURCE, 0, first_epoch=0, repeats=1, skip=0, stop=None, num_tokens=num_tokens),),
        parts=parts,
        sequence_sources=given.sources,
        directory=request.directory,
    )


def _parts(receipt: Receipt, layout: ShardLayout) -> Iterator[Part]:
    (path,), num_blocks, length = receipt["files"], receipt["num_blocks"], layout.block_tokens
    labels_of_last = dict(zip(*receipt["short"], strict=True))
    start = 0
    for last in sorted(labels_of_last.keys() | {num_blocks - 1}):
        before, num_labels = (last - start) * length, labels_of_last.get(last, length)
        yield Part(
            source=SOURCE,
            path=path,
            sha256=receipt["sha256"],
            bytes=receipt["bytes"],
            dtype=layout.dtype.str,
            has_mask=layout.has_mask,
            shard_blocks=num_blocks,
            block_start=start,
            block_stop=last + 1,
            pool=0,
            repeats=1,
            # The label of a short sequence's last position is a token of its own; that of a full one is the next sequence's.
            num_tokens=before + min(num_labels + 1, length),
            num_labels=before + num_labels,
        )
        start = last + 1
