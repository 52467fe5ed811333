"""A manifest as a list of shards that `webdataset` reads by itself, each as often as the manifest repeats it.

Whole shards are named where they lie (or linked, or copied); ranges of blocks are cut into tars of their own. Occurrences of a shard
are spread evenly over the list, so that every stretch of it has about the mixture. Labels beyond a partition's last token are not
masked there as they are in our loader: such a block ends in padding, which `index.json` counts.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastmix_data.atomic_files import atomic_file, read_json, write_json
from fastmix_data.errors import CorruptArtefactError, FastmixError, MismatchError
from fastmix_data.manifest.manifest import Manifest, Part, load_manifest
from fastmix_data.permutation import derive_keys
from fastmix_data.progress import progress
from fastmix_data.shards.shard_format import cut_shard

SHARD_LIST = "shards.txt"
INDEX = "index.json"
_SPREAD_STREAM = 31
Files = Literal["reference", "hardlink", "copy"]


@dataclass(frozen=True)
class WebDatasetExport:
    """What an export wrote or found."""

    directory: Path
    num_urls: int
    num_samples: int
    did_work: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "did_work": self.did_work,
            "shard_list": str(self.directory / SHARD_LIST),
            "index": str(self.directory / INDEX),
            "num_urls": self.num_urls,
            "num_samples": self.num_samples,
        }

    @property
    def message(self) -> str:
        """One line for the user."""
        if self.did_work:
            return f"{self.directory / SHARD_LIST}: {self.num_urls} shards to read, {self.num_samples} samples, repeats included"
        return f"{self.directory / INDEX} is complete and matches the manifest; nothing to do"


def export_webdataset(
    manifest_path: Path,
    directory: Path,
    *,
    files: Files = "reference",
    root: Path | None = None,
    replace: bool = False,
    quiet: bool = True,
) -> WebDatasetExport:
    """Write `shards.txt` (one path per line, repeats included), tars of partial ranges, and `index.json` in the wids format.

    `wds.WebDataset(Path("shards.txt").read_text().splitlines(), shardshuffle=False).decode()` reads exactly the manifest's blocks.

    Args:
        files: whole shards are named by their absolute path, or hard-linked or copied into `directory`.
        root: where the shards are, if not where the manifest says.
        replace: write anew over an export of another manifest.

    Raises:
        InputError, CorruptArtefactError: as `load_manifest`; or a shard is missing or not what the manifest recorded.
        MismatchError: the folder holds an export of another manifest or with another `files`.
    """
    manifest = load_manifest(manifest_path)
    root = (manifest.root_path if root is None else root).resolve()
    directory = directory.resolve()
    made_from = {"manifest_sha256": manifest.sha256, "files": files, "root": str(root)}
    index_path = directory / INDEX
    if index_path.exists() and not replace:
        return _check_same(read_json(index_path), made_from, directory)
    index_path.unlink(missing_ok=True)  # written last: without it, what is here is not taken for an export
    paths: list[Path] = []
    with progress("export", total=sum(part.num_tokens for part in manifest.parts), quiet=quiet) as advance:
        for part in manifest.parts:
            paths.append(_place(part, manifest, root=root, directory=directory, files=files))
            advance(part.num_tokens)
    order = _spread(manifest)
    with atomic_file(directory / SHARD_LIST) as file:
        file.write("".join(f"{paths[number]}\n" for number in order).encode())
    num_samples = sum(part.num_blocks * part.repeats for part in manifest.parts)
    index = {**_wids_index(manifest, paths), "fastmix": {**made_from, "num_urls": len(order), "num_samples": num_samples}}
    write_json(index_path, index)
    return WebDatasetExport(directory, len(order), num_samples, did_work=True)


def _check_same(index: Any, made_from: dict[str, str], directory: Path) -> WebDatasetExport:
    found = index.get("fastmix", {}) if isinstance(index, dict) else {}
    for name, value in made_from.items():
        if found.get(name) != value:
            problem = f"holds an export whose {name} is {found.get(name)}, now {value}"
            raise MismatchError(directory, problem, "export to another folder with --out, or delete this one")
    missing = next((shard["url"] for shard in index["shardlist"] if not Path(shard["url"]).is_file()), None)
    if missing is not None or not (directory / SHARD_LIST).is_file():
        raise CorruptArtefactError(directory, f"{missing or SHARD_LIST} is missing", "delete the folder and export again")
    return WebDatasetExport(directory, found["num_urls"], found["num_samples"], did_work=False)


def _place(part: Part, manifest: Manifest, *, root: Path, directory: Path, files: Files) -> Path:
    """Absolute path of a tar that holds exactly a part's blocks, made if need be."""
    shard = manifest.open(part, root=root)
    if part.is_whole_shard:
        return shard.path if files == "reference" else _bring(shard.path, directory / part.path, files=files)
    relative = Path(part.path)
    target = directory / relative.with_name(f"{relative.stem}.{part.block_start}-{part.block_stop}.tar")
    with atomic_file(target) as file:
        file.write(cut_shard(shard, start=part.block_start, stop=part.block_stop))
    return target


def _bring(source: Path, target: Path, *, files: Files) -> Path:
    if target.exists() and target.samefile(source):
        return target
    if files == "copy":
        with source.open("rb") as reader, atomic_file(target) as writer:
            shutil.copyfileobj(reader, writer, 1 << 24)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        raise FastmixError(target, f"cannot be a hard link to {source} ({error.strerror})", "export with --files copy") from error
    return target


def _spread(manifest: Manifest) -> list[int]:
    """Numbers of parts, each `repeats` times, at evenly spaced moments of the run with a random phase."""
    # A reader without a shuffle buffer over the whole list sees it in this order. Occurrence i of r lies at a random moment within the
    # i-th of r equal stretches of the run: repeats stay apart, and every stretch has each part's share.
    repeats_P = np.array([part.repeats for part in manifest.parts])
    part_N = np.repeat(np.arange(len(repeats_P)), repeats_P)
    occurrence_N = np.concatenate([np.arange(count) for count in repeats_P])
    phase_N = derive_keys(manifest.seed, _SPREAD_STREAM, part_N).astype(np.float64) / 2.0**64
    order_N = np.argsort((occurrence_N + phase_N) / repeats_P[part_N], kind="stable")
    return [int(part) for part in part_N[order_N]]


def _wids_index(manifest: Manifest, paths: list[Path]) -> dict[str, Any]:
    """Shards as `wids` of webdataset reads them. It takes an md5sum too, which would cost a full read of the corpus: the shards' sha256
    are in the manifest."""
    shards = [
        {
            "url": str(path),
            "nsamples": part.num_blocks,
            "filesize": path.stat().st_size,
            "source": part.source,
            "repeats": part.repeats,
            "num_padding_labels": part.num_blocks * manifest.block_tokens - part.num_labels,
        }
        for part, path in zip(manifest.parts, paths, strict=True)
    ]
    return {"wids_version": 1, "name": "fastmix", "shardlist": shards}
