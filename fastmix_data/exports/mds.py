"""A manifest as MDS, the shards of MosaicML streaming: a folder of them for every pool, and the streams that read each pool exactly as
often as the manifest does.

A sample is one block. Its `tokens` are those of our shards, one more than `block_tokens`: llm-foundry cuts a sample to its
`max_seq_len` and shifts the labels within it, and any other trainer has the label of the last position too. All samples of a run
have the same size, so a collate function that stacks works; `num_labels` says where the padding of a run's last block begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import yaml

from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.exports.format import ExportRequest, Keeps, OnTokens, Receipt
from fastmix_data.exports.pools import (
    FETCHED_FILE_BYTES,
    PartRange,
    Pool,
    common_dtype,
    cut_into_files,
    num_padding_labels,
    pools_of,
)

STREAMS = "streams.yaml"
STREAMS_BY_PROPORTION = "streams-by-proportion.yaml"
_INDEX = "index.json"
_HASH = "sha1"  # of those that `Stream(validate_hash=...)` knows, the cheapest that Python has


class _Mds:
    name = "mds"
    reader = "mosaicml-streaming 0.13"
    writes = "a folder of MDS shards for each pool, and streams.yaml with `repeat`"
    runs_in: Literal["threads", "processes"] = "processes"
    keeps = Keeps(
        order="no: its own shuffle over all streams",
        shares="yes",
        epochs="yes, as `repeat`",
        masks="yes, as `loss_mask`",
        examples="yes, as `starts`",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        manifest, remarks = request.manifest, []
        if padded := num_padding_labels(manifest):
            remarks.append(
                f"{padded} labels beyond the last token of a run are padding: `num_labels` of each sample counts the others;"
                " llm-foundry does not read it, and learns them"
            )
        if masked := dict.fromkeys(part.source for part in manifest.parts if part.has_mask):
            remarks.append(
                f"{', '.join(masked)}: `loss_mask` and `starts` stand beside `tokens`; llm-foundry's text data set reads `tokens`"
                " alone, so with it every token carries loss, and examples see each other"
            )
        return remarks

    def tasks(self, request: ExportRequest) -> Sequence[_WriteShard]:
        layout = _layout(request)
        return [
            _WriteShard(pool.name, number, ranges, layout)
            for pool, number, ranges in cut_into_files(request.manifest, unit="blocks", size=layout.max_samples)
        ]

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:
        shards: dict[str, list[dict[str, Any]]] = {}
        for task in self.tasks(request):
            shards.setdefault(task.pool, []).append(receipts[task.name]["shard"])
        for name, infos in shards.items():
            write_json(request.directory / name / _INDEX, {"version": 2, "shards": infos})
        _write_streams(request, pools_of(request.manifest))
        return (STREAMS, STREAMS_BY_PROPORTION, *(f"{name}/{_INDEX}" for name in shards))


FORMAT = _Mds()


@dataclass(frozen=True)
class _Layout:
    """How samples lie in a shard: columns in the order of their names, all of a fixed size, so that samples are an array of records.

    Attributes:
        record: the columns of one sample.
        block_tokens: one less than a sample's tokens.
        size_limit: bytes of a shard.
    """

    record: np.dtype[np.void]
    block_tokens: int
    size_limit: int

    @property
    def header(self) -> dict[str, Any]:
        """What a shard says of itself and the index of each shard, as `MDSWriter` has it."""
        columns = [self.record[name] for name in self.record.names or ()]
        return {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": [_HASH],
            "size_limit": self.size_limit,
            "column_names": list(self.record.names or ()),
            "column_encodings": [_encoding(column) for column in columns],
            "column_sizes": [column.itemsize for column in columns],
        }

    @property
    def header_bytes(self) -> bytes:
        return json.dumps(self.header, sort_keys=True).encode()

    @property
    def max_samples(self) -> int:
        """Of a shard within `size_limit`: each takes its record and the 4 bytes of an offset; at least one."""
        return max(1, (self.size_limit - 8 - len(self.header_bytes)) // (self.record.itemsize + 4))

    def begin(self, num_samples: int) -> bytes:
        """What comes before the samples: their number, where each begins and the last one ends, and the header."""
        header = self.header_bytes
        first = 4 + 4 * (num_samples + 1) + len(header)
        offsets = first + self.record.itemsize * np.arange(num_samples + 1, dtype=np.int64)
        return np.uint32(num_samples).tobytes() + offsets.astype("<u4").tobytes() + header


def _encoding(column: np.dtype[Any]) -> str:
    """A column's type as MDS writes it.

    >>> _encoding(np.dtype(("<u2", (17,)))), _encoding(np.dtype("<i4"))
    ('ndarray:uint16:17', 'int32')
    """
    return f"ndarray:{column.base.name}:{column.shape[0]}" if column.shape else column.name


def _layout(request: ExportRequest) -> _Layout:
    """The same columns for all pools, with masks where one source has some: a batch holds samples of several."""
    manifest = request.manifest
    length = manifest.block_tokens + 1
    columns: list[Any] = [("num_labels", "<i4"), ("tokens", common_dtype(manifest), (length,))]
    if manifest.has_masks:
        columns += [("loss_mask", "u1", (length,)), ("starts", "u1", (length,))]
    record = np.dtype(sorted(columns, key=lambda column: str(column[0])))
    return _Layout(record, manifest.block_tokens, min(request.max_file_bytes, FETCHED_FILE_BYTES))


@dataclass(frozen=True)
class _WriteShard:
    pool: str
    number: int
    ranges: tuple[PartRange, ...]
    layout: _Layout

    @property
    def name(self) -> str:
        return f"{self.pool}.{self.number:05}"

    @property
    def num_tokens(self) -> int:
        return sum(each.stop - each.start for each in self.ranges) * self.layout.block_tokens

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Write one shard; it is in memory whole."""
        layout = self.layout
        samples_N = np.empty(sum(each.stop - each.start for each in self.ranges), layout.record)
        first = 0
        for each in self.ranges:
            stop = first + each.stop - each.start
            _fill(samples_N[first:stop], request, each)
            first = stop
        basename = f"shard.{self.number:05}.mds"
        begin, samples = layout.begin(len(samples_N)), samples_N.view(np.uint8).data
        with atomic_file(request.directory / self.pool / basename) as file:
            file.write(begin)
            file.write(samples)
        on_tokens(self.num_tokens)
        digest = hashlib.sha1(begin, usedforsecurity=False)
        digest.update(samples)
        raw = {"basename": basename, "bytes": len(begin) + len(samples), "hashes": {_HASH: digest.hexdigest()}}
        shard = {**layout.header, "samples": len(samples_N), "raw_data": raw, "zip_data": None}
        return {"files": [f"{self.pool}/{basename}"], "shard": shard}


def _fill(samples_N: np.ndarray[Any, np.dtype[np.void]], request: ExportRequest, blocks: PartRange) -> None:
    """Set every column of blocks of one part."""
    block_tokens, part = request.manifest.block_tokens, request.manifest.parts[blocks.part]
    shard = request.manifest.open(part, root=request.root)
    stored = slice(part.block_start + blocks.start, part.block_start + blocks.stop)
    # Only the last block of a part has fewer labels than block_tokens.
    num_before_N = np.arange(blocks.start, blocks.stop) * block_tokens
    num_labels_N = np.minimum(block_tokens, part.num_labels - num_before_N)
    samples_N["tokens"] = shard.tokens_NT[stored]
    samples_N["num_labels"] = num_labels_N
    if shard.loss_mask_NT is not None and shard.starts_NT is not None:
        samples_N["loss_mask"] = shard.loss_mask_NT[stored]
        samples_N["starts"] = shard.starts_NT[stored]
    elif "loss_mask" in (samples_N.dtype.names or ()):
        samples_N["loss_mask"] = np.arange(block_tokens + 1) <= num_labels_N[:, None]
        samples_N["starts"] = 0


def _write_streams(request: ExportRequest, pools: Sequence[Pool]) -> None:
    """The streams of a run, as keyword arguments of `Stream` by name: the form of llm-foundry's `train_loader.dataset.streams`."""
    local = {pool.name: str(request.directory / pool.name) for pool in pools}
    exact = {pool.name: {"local": local[pool.name], "repeat": pool.repeats} for pool in pools}
    relative = {pool.name: {"local": local[pool.name], "proportion": pool.repeats * pool.num_blocks} for pool in pools}
    num_samples = sum(pool.repeats * pool.num_blocks for pool in pools)
    reading = (
        f"# For llm-foundry: `train_loader.dataset`, with `max_seq_len: {request.manifest.block_tokens}`, as samples are cut to it.\n"
        "# In Python: StreamingDataset(streams=[Stream(**each) for each in FILE['streams'].values()], shuffle=True, batch_size=...)\n"
        "# Elsewhere than in this folder: put `remote` beside `local`, or change `local`.\n"
    )
    whole = f"# One epoch is the manifest: {num_samples} samples, every pool exactly `repeat` times.\n"
    part = "# Any number of samples with the manifest's shares: set epoch_size, and give it to StreamingDataset.\n"
    _write_yaml(request, STREAMS, reading + whole, {"streams": exact})
    _write_yaml(request, STREAMS_BY_PROPORTION, reading + part, {"epoch_size": num_samples, "streams": relative})


def _write_yaml(request: ExportRequest, name: str, comment: str, content: Mapping[str, Any]) -> None:
    with atomic_file(request.directory / name) as file:
        file.write((comment + yaml.safe_dump(dict(content), sort_keys=False)).encode())
