"""A manifest as folders that litdata reads with a `TokensLoader`: every pool one run of tokens, cut into windows when it is read.

The reader takes windows from each file (chunk) by itself and leaves what is over at its end. Files therefore hold whole windows of
`block_tokens + 1` tokens, and of `block_tokens` where that many fit, so that something is left at the end of a pool only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastmix_data.arrays import Tokens
from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.exports.format import ExportRequest, Keeps, OnTokens, Receipt
from fastmix_data.exports.part_tokens import label_remarks
from fastmix_data.exports.pools import FETCHED_FILE_BYTES, PartRange, common_dtype, cut_into_files, pools_of

MIXTURE = "mixture.py"
_INDEX = "index.json"
_HEADER_BYTES = 12  # number of items, where the one begins, where it ends
_DATA_FORMATS = {"uint16": "no_header_numpy:5", "uint32": "no_header_numpy:6"}  # numbers of litdata's list of NumPy types
_ONE_ARRAY = '[1, {"type": null, "context": null, "children_spec": []}]'  # an item is no container: PyTorch's pytree of one leaf


class _LitData:
    name = "litdata"
    reader = "litdata 0.2"
    writes = "a folder of token chunks for each pool, and mixture.py with the data sets"
    runs_in: Literal["threads", "processes"] = "processes"
    keeps = Keeps(
        order="no: its own shuffle within a pool, pools drawn by weight",
        shares="yes",
        epochs="yes, but for the rest of each pool that fills no window",
        masks="no",
        examples="no",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        remarks, window = label_remarks(request.manifest), request.manifest.block_tokens + 1
        pools = pools_of(request.manifest)
        if masked := dict.fromkeys(pool.source for pool in pools if pool.has_mask):
            remarks.append(
                f"{', '.join(masked)}: a TokensLoader has no masks and no example boundaries, so every token carries loss, padding"
                " between examples too, and examples see each other and are cut by windows"
            )
        if rest := sum(pool.repeats * (pool.num_tokens % window) for pool in pools):
            remarks.append(
                f"{rest} tokens of a run, at the ends of pools, are in the files but fill no window of {window}, and are not read;"
                " other block sizes leave other rests"
            )
        if short := [pool.name for pool in pools if pool.num_tokens < window]:
            remarks.append(f"{', '.join(short)}: shorter than a window of {window} tokens, so {MIXTURE} leaves them out")
        return remarks

    def tasks(self, request: ExportRequest) -> Sequence[_WriteChunk]:
        dtype = common_dtype(request.manifest)
        size = _tokens_per_chunk(request, dtype.itemsize)
        files = cut_into_files(request.manifest, unit="tokens", size=size)
        return [_WriteChunk(pool.name, number, ranges, dtype.str) for pool, number, ranges in files]

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:
        chunks: dict[str, list[dict[str, Any]]] = {}
        for task in self.tasks(request):
            chunks.setdefault(task.pool, []).append(receipts[task.name]["chunk"])
        pools = pools_of(request.manifest)
        for pool in pools:
            write_json(request.directory / pool.name / _INDEX, _index(request, chunks[pool.name]))
        rows = "".join(f'    ("{pool.name}", {pool.repeats}, {pool.num_tokens}),\n' for pool in pools)
        with atomic_file(request.directory / MIXTURE) as file:
            file.write(_MIXTURE_CODE.replace("    # POOLS\n", rows).encode())
        return (MIXTURE, *(f"{pool.name}/{_INDEX}" for pool in pools))


FORMAT = _LitData()


def _tokens_per_chunk(request: ExportRequest, itemsize: int) -> int:
    """Tokens of every chunk but a pool's last: a multiple of both `block_tokens` and one more, or of the latter where both are too many."""
    block = request.manifest.block_tokens
    room = (min(request.max_file_bytes, FETCHED_FILE_BYTES) - _HEADER_BYTES) // itemsize
    unit = block * (block + 1) if block * (block + 1) <= room else block + 1
    return max(1, room // unit) * unit


@dataclass(frozen=True)
class _WriteChunk:
    pool: str
    number: int
    ranges: tuple[PartRange, ...]
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.pool}.{self.number:05}"

    @property
    def num_tokens(self) -> int:
        return sum(each.stop - each.start for each in self.ranges)

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Write one chunk, a single item, part by part."""
        end = _HEADER_BYTES + self.num_tokens * np.dtype(self.dtype).itemsize
        filename = f"chunk-0-{self.number}.bin"
        with atomic_file(request.directory / self.pool / filename) as file:
            file.write(np.array([1, _HEADER_BYTES, end], "<u4").tobytes())
            for each in self.ranges:
                file.write(_read_run(request, each).astype(self.dtype, copy=False).data)
                on_tokens(each.stop - each.start)
        chunk = {"chunk_bytes": end, "chunk_size": 1, "dim": self.num_tokens, "filename": filename}
        return {"files": [f"{self.pool}/{filename}"], "chunk": chunk}


def _read_run(request: ExportRequest, tokens: PartRange) -> Tokens:
    """Tokens `start` to `stop` of a part."""
    manifest = request.manifest
    part, block = manifest.parts[tokens.part], manifest.block_tokens
    shard = manifest.open(part, root=request.root)
    first, last = tokens.start // block, -(-tokens.stop // block)
    # The last column of a block is the next block's first token. Reshaping makes the copy.
    run_T: Tokens = shard.tokens_NT[part.block_start + first : part.block_start + last, :-1].reshape(-1)
    return run_T[tokens.start - first * block : tokens.stop - first * block]


def _index(request: ExportRequest, chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What litdata's own writer leaves beside its chunks; `updated_at` tells a reader's cache one export from another."""
    config = {
        "chunk_bytes": min(request.max_file_bytes, FETCHED_FILE_BYTES),
        "chunk_size": None,
        "compression": None,
        "compression_batch_size": None,
        "compression_level": None,
        "data_format": [_DATA_FORMATS[common_dtype(request.manifest).name]],
        "data_spec": _ONE_ARRAY,
        "encryption": None,
        "ipc_compression": None,
        "item_loader": "TokensLoader",
        "types": "json",
    }
    return {"chunks": chunks, "config": config, "updated_at": request.manifest.sha256}


_MIXTURE_CODE = '''"""The manifest's mixture as litdata reads it, written by `fastmix export`.

Windows are `block_size` tokens: give the length of a sequence plus one, and take inputs and labels from each.
"""

from pathlib import Path

from litdata import CombinedStreamingDataset, StreamingDataset, TokensLoader

FOLDER = Path(__file__).resolve().parent
POOLS = [  # folder, how often a run reads it, its tokens
    # POOLS
]


def exact(block_size, *, seed=42, shuffle=True, **options):
    """Data set of one run: every window of a pool as often as the manifest reads it, pools in random order.

    A pool is opened once for every pass over it, for a data set that is at its end does not begin again.
    """
    passes = [name for name, repeats, tokens in POOLS if tokens >= block_size for _ in range(repeats)]
    return CombinedStreamingDataset(_open(passes, block_size, seed, shuffle, options), seed=seed, iterate_over_all=True)


def weighted(block_size, *, seed=42, shuffle=True, **options):
    """Data set with the manifest's shares that ends when the first pool does: before the others of a long run are through."""
    pools = [(name, repeats * tokens) for name, repeats, tokens in POOLS if tokens >= block_size]
    names, weights = [name for name, _ in pools], [weight for _, weight in pools]
    datasets = _open(names, block_size, seed, shuffle, options)
    return CombinedStreamingDataset(datasets, seed=seed, weights=weights, iterate_over_all=False)


def _open(names, block_size, seed, shuffle, options):
    # A seed of its own for every pass, or they would all come in the same order.
    return [
        StreamingDataset(
            str(FOLDER / name), item_loader=TokensLoader(block_size=block_size), seed=seed + number, shuffle=shuffle, **options
        )
        for number, name in enumerate(names)
    ]
'''
