"""A manifest as a list of shards that `webdataset` reads by itself, each as often as the manifest repeats it.

Whole shards are named where they lie (or linked, or copied); ranges of blocks are cut into tars of their own. Occurrences of a shard
are spread evenly over the list, so that every stretch of it has about the mixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.exports.bring import bring
from fastmix_data.exports.format import ExportRequest, Keeps, OnTokens, Receipt
from fastmix_data.exports.pools import num_padding_labels, pools_of
from fastmix_data.foreign.storage import is_foreign, lies_in_workdir
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.permutation import derive_keys
from fastmix_data.shards.open_shard import tar_of_blocks

SHARD_LIST = "shards.txt"
INDEX = "index.json"
_SPREAD_STREAM = 31


class _WebDataset:
    name = "webdataset"
    reader = "webdataset 1.0, and its wids"
    writes = "a list of shards with repeats, a wids index, and tars of partial ranges"
    runs_in: Literal["threads", "processes"] = "threads"
    keeps = Keeps(
        order="by shard: every stretch of the list has about the mixture",
        shares="yes",
        epochs="yes",
        masks="yes, as `loss_mask.npy`",
        examples="yes, as `starts.npy`",
        phases="yes, one after another in the list",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        padded = num_padding_labels(request.manifest)
        if not padded:
            return ()
        return (
            f"{padded} labels beyond the last token of a run are padding that carries no mask there; {INDEX} counts them by shard",
        )

    def tasks(self, request: ExportRequest) -> Sequence[_PlacePart]:
        # Two pools may hold one shard; it is one file all the same.
        return list({task.name: task for task in _places(request.manifest)}.values())

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:
        paths = [Path(receipts[place.name]["path"]) for place in _places(request.manifest)]
        # A materialized manifest is in its order as it stands.
        numbers = range(len(paths)) if request.manifest.sequence_sources else spread_repeats(request.manifest)
        with atomic_file(request.directory / SHARD_LIST) as file:
            file.write("".join(f"{paths[number]}\n" for number in numbers).encode())
        write_json(request.directory / INDEX, _wids_index(request.manifest, paths))
        return (SHARD_LIST, INDEX)


FORMAT = _WebDataset()


@dataclass(frozen=True)
class _PlacePart:
    part: Part
    number: int

    @property
    def place(self) -> Path:
        """Of its tar in the export: as in the workdir, where the shard lies there."""
        if lies_in_workdir(self.part.storage):
            return Path(self.part.path)
        return Path("imports") / self.part.source / f"{self.number:06d}.tar"

    @property
    def name(self) -> str:
        stem = self.place.with_suffix("").as_posix().replace("/", "--")
        return stem if self.part.is_whole_shard else f"{stem}.{self.part.block_start}-{self.part.block_stop}"

    @property
    def num_tokens(self) -> int:
        return self.part.num_tokens

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Find or make a tar that holds exactly the part's blocks."""
        directory = request.directory
        shard, relative, made = request.manifest.open(self.part, root=request.root), self.place, True
        if not self.part.is_whole_shard or is_foreign(self.part.storage):
            path = directory / relative.with_name(f"{relative.stem}.{self.part.block_start}-{self.part.block_stop}.tar")
            with atomic_file(path) as file:
                layout = request.manifest.layout(self.part)
                file.write(tar_of_blocks(shard, layout=layout, start=self.part.block_start, stop=self.part.block_stop))
        elif request.files == "reference":
            path, made = shard.path, False
        else:
            path = bring(shard.path, relative.as_posix(), directory=directory, files=request.files)
        on_tokens(self.num_tokens)
        return {"path": str(path), "files": [path.relative_to(directory).as_posix()] if made else []}


def _places(manifest: Manifest) -> list[_PlacePart]:
    """Of every part that is drawn, pool by pool; of a materialized manifest, whose parts end wherever a sequence is short, its shards."""
    pools = pools_of(manifest)
    if not manifest.sequence_sources:
        parts = [(pool.first_part + n, part) for pool in pools for n, part in enumerate(pool.parts)]
        # An import is called by the first part of it, for it may be in several pools too.
        first: dict[tuple[str, int], int] = {}
        return [_PlacePart(part, first.setdefault((part.path, part.first_token), number)) for number, part in parts]
    shards = [list(parts) for _, parts in groupby(pools[0].parts, key=attrgetter("path"))]
    return [_PlacePart(_whole(parts), number) for number, parts in enumerate(shards)]


def _whole(parts: Sequence[Part]) -> Part:
    """Parts that make up a shard as one."""
    num_tokens, num_labels = (sum(getattr(part, name) for part in parts) for name in ("num_tokens", "num_labels"))
    return replace(parts[0], block_stop=parts[0].shard_blocks, num_tokens=num_tokens, num_labels=num_labels)


def spread_repeats(manifest: Manifest) -> list[int]:
    """Numbers of drawn parts, each `repeats` times, at evenly spaced moments of its phase with a random offset."""
    # A reader without a shuffle buffer over the whole list sees it in this order. Occurrence i of r lies at a random moment within the
    # i-th of r equal stretches of its phase: repeats stay apart, and every stretch has each part's share.
    repeats_P = np.array([pool.repeats for pool in pools_of(manifest) for _ in pool.parts])
    phase_P = np.array([pool.phase for pool in pools_of(manifest) for _ in pool.parts])
    part_N = np.repeat(np.arange(len(repeats_P)), repeats_P)
    occurrence_N = np.concatenate([np.arange(count) for count in repeats_P])
    offset_N = derive_keys(manifest.seed, _SPREAD_STREAM, part_N).astype(np.float64) / 2.0**64
    order_N = np.lexsort(((occurrence_N + offset_N) / repeats_P[part_N], phase_P[part_N]))
    return [int(part) for part in part_N[order_N]]


def _wids_index(manifest: Manifest, paths: Sequence[Path]) -> dict[str, Any]:
    """Shards as `wids` of webdataset reads them. It takes an md5sum too, which would cost a full read of the corpus: the shards' sha256
    are in the manifest."""
    shards: dict[str, dict[str, Any]] = {}
    for part, path in zip((place.part for place in _places(manifest)), paths, strict=True):
        repeats = shards[str(path)]["repeats"] if str(path) in shards else 0
        shards[str(path)] = {
            "url": str(path),
            "nsamples": part.num_blocks,
            "filesize": path.stat().st_size,
            "source": part.source,
            "repeats": repeats + part.repeats,
            "num_padding_labels": part.num_blocks * manifest.block_tokens - part.num_labels,
        }
    return {"wids_version": 1, "name": "fastmix", "shardlist": list(shards.values())}
