"""A manifest as Megatron-Energon's data sets: a folder of tars for each pool, and meta data sets that blend them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.exports.bring import bring
from fastmix_data.exports.format import ExportRequest, Keeps, OnTokens, Receipt
from fastmix_data.exports.held_out import held_out_of
from fastmix_data.exports.part_tokens import check_unchanged
from fastmix_data.exports.pools import pools_of
from fastmix_data.foreign.storage import is_foreign
from fastmix_data.manifest.parts import Part
from fastmix_data.shards.open_shard import tar_of_blocks

EPOCHS, SHARES = "epochs.yaml", "shares.yaml"
SHORT_SAMPLES = "short_samples.json"
_VERSION = "7.4.1"
_META = ".nv-meta"


class _Energon:
    name = "energon"
    reader = f"megatron-energon {_VERSION}"
    writes = "a prepared folder of tars for each source, and meta data sets by repetitions and by weights"
    runs_in: Literal["threads", "processes"] = "processes"
    keeps = Keeps(
        order="no: shuffled by its own seed",
        shares="yes",
        epochs=f"yes with {EPOCHS}; no with {SHARES}",
        masks="yes, as `loss_mask.npy`",
        examples="yes, as `starts.npy`",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        block_tokens = request.manifest.block_tokens
        remarks = [
            f"the order is Energon's own; with {EPOCHS} a run reads each block exactly as often as the manifest says, with {SHARES} "
            "only in proportion",
            "there is no index of samples by key, which only joined and auxiliary data sets need: `energon prepare` makes it",
        ]
        parts = [part for folder in request.once(_folders) for part in folder.parts]
        # By the block that they end with: a run's end may be in two folders.
        ends = {
            (part.path, part.first_token, part.block_stop): part.num_blocks * block_tokens - part.num_labels for part in parts
        }
        if padding := sum(ends.values()):
            remarks.append(
                f"{padding} labels beyond the last token of a run are padding; {SHORT_SAMPLES} names the samples and their labels"
            )
        return [*remarks, *request.once(held_out_of).remarks]

    def tasks(self, request: ExportRequest) -> Sequence[_PlaceShard]:
        return [task for folder in request.once(_folders) for task in folder.tasks]

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:
        folders, directory = request.once(_folders), request.directory
        files: dict[str, Any] = {}
        for folder in folders:
            files |= folder.meta([Path(receipts[task.name]["files"][0]).name for task in folder.tasks])
        train = [folder for folder in folders if folder.split == "train"]
        held_out = [folder.reference(repetitions=1) for folder in folders if folder.split == "val"]
        blends = {
            EPOCHS: {"blend_epochized": [folder.reference(repetitions=folder.repeats) for folder in train]},
            # Energon draws samples, and a sample is a block.
            SHARES: {"blend": [folder.reference(weight=folder.repeats * folder.num_blocks) for folder in train]},
        }
        for name, blend in blends.items():
            splits = {"train": blend, **({"val": {"blend_epochized": held_out}} if held_out else {})}
            files[name] = {"__module__": "megatron.energon", "__class__": "MetadatasetV2", "splits": splits}
        files[SHORT_SAMPLES] = {key: count for receipt in receipts.values() for key, count in receipt["short"].items()}
        for name, content in files.items():
            if name.endswith(".json"):
                write_json(directory / name, content)
                continue
            with atomic_file(directory / name) as file:
                file.write(yaml.safe_dump(content, sort_keys=False).encode())
        return (EPOCHS, *(name for name in files if name != EPOCHS))


FORMAT = _Energon()


@dataclass(frozen=True)
class _Folder:
    """One data set: what a pool, or the held-out part of a source, has in one folder."""

    name: str
    source: str
    split: str
    repeats: int
    parts: tuple[Part, ...]

    @property
    def num_blocks(self) -> int:
        return sum(part.num_blocks for part in self.parts)

    @property
    def tasks(self) -> list[_PlaceShard]:
        return [_PlaceShard(self.name, number, part, self.split != "train") for number, part in enumerate(self.parts)]

    def reference(self, **amount: float) -> dict[str, Any]:
        """What a blend says of it."""
        return {"path": self.name, **amount, "subflavors": {"source": self.source}}

    def meta(self, names: Sequence[str]) -> dict[str, Any]:
        """Contents of the files in its `.nv-meta`, by path in the export."""
        counts = {name: part.num_blocks for name, part in zip(names, self.parts, strict=True)}
        parts = {split: list(counts) if split == self.split else [] for split in ("train", "val", "test")}
        contents = {
            ".info.json": {"energon_version": _VERSION, "shard_counts": counts},
            "split.yaml": {"split_parts": parts, "exclude": []},
            "dataset.yaml": {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"},
        }
        return {f"{self.name}/{_META}/{name}": content for name, content in contents.items()}


def _folders(request: ExportRequest) -> list[_Folder]:
    held_out = request.once(held_out_of)
    return [
        *(_Folder(f"train/{pool.name}", pool.source, "train", pool.repeats, pool.parts) for pool in pools_of(request.manifest)),
        *(_Folder(f"val/{source}", source, "val", 1, parts) for source, parts in held_out.parts.items()),
    ]


@dataclass(frozen=True)
class _PlaceShard:
    """Have a tar with exactly a part's blocks in a data set's folder, and its index."""

    folder: str
    number: int
    part: Part
    check_shard: bool

    @property
    def name(self) -> str:
        return f"{self.folder.replace('/', '-')}-{self.number:06d}"

    @property
    def num_tokens(self) -> int:
        return self.part.num_tokens

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Link, copy or cut; see `bring` and `Manifest.open` for what they raise."""
        part, name = self.part, f"{self.folder}/{self.number:06d}.tar"
        if self.check_shard:
            check_unchanged(part, root=request.root)
        shard, path = request.manifest.open(part, root=request.root), request.directory / name
        layout = request.manifest.layout(part)
        if part.is_whole_shard and not is_foreign(part.storage):
            bring(shard.path, name, directory=request.directory, files=request.files)
        else:
            with atomic_file(path) as file:
                file.write(tar_of_blocks(shard, layout=layout, start=part.block_start, stop=part.block_stop))
        with atomic_file(path.with_name(f"{path.name}.idx")) as file:
            # Where each sample begins, and where the last one ends.
            file.write((np.arange(part.num_blocks + 1, dtype="<u8") * layout.stride).tobytes())
        on_tokens(part.num_tokens)
        last_labels = part.num_labels - (part.num_blocks - 1) * layout.block_tokens
        short = {} if last_labels == layout.block_tokens else {shard.key(part.block_stop - 1): last_labels}
        return {"files": [name, f"{name}.idx"], "short": short}
