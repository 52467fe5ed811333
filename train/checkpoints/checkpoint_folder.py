"""What lies in a folder of checkpoints: one folder for each, which counts once its index is there and all files are what it says."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastmix_data.atomic_files import fsync_directory, hash_of, read_json, sha256_of_file, write_json
from fastmix_data.errors import CorruptArtefactError, MismatchError
from train.checkpoints.tensor_files import WrittenFile

STATE_FILE = "state.json"
_INDEX, _POINTER_BEFORE = "index.json", "latest.json"
_FORMAT_VERSION = 2
_START_AFRESH = "go on with that one, or start afresh with --replace"


def folder_of(directory: Path, step: int) -> Path:
    """Folder of the checkpoint at a step."""
    return directory / f"step-{step:08d}"


def tensor_file(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def write_index(folder: Path, *, step: int, identity: dict[str, Any], files: dict[str, WrittenFile]) -> None:
    """Make a checkpoint count whose files are on the disk."""
    content = {
        "format": _FORMAT_VERSION,
        "step": step,
        "identity": identity,
        "files": {name: asdict(file) for name, file in files.items()},
    }
    write_json(folder / _INDEX, {**content, "sha256": hash_of(content)})
    fsync_directory(folder.parent)


def read_index(folder: Path) -> dict[str, Any]:
    """What `write_index` wrote.

    Raises:
        CorruptArtefactError: it is not that.
    """
    index = read_json(folder / _INDEX)
    content = {key: value for key, value in index.items() if key != "sha256"} if isinstance(index, dict) else {}
    if not content or hash_of(content) != index.get("sha256"):
        raise CorruptArtefactError(folder / _INDEX, "not what was written", "remove it")
    return content


def complete_checkpoints(directory: Path) -> list[Path]:
    """Folders that have an index, the newest first; each may have been damaged since."""
    return sorted((path.parent for path in directory.glob(f"step-*/{_INDEX}")), reverse=True)


def damage(folder: Path, files: dict[str, dict[str, Any]], names: list[str]) -> str:
    """What is wrong with files of a checkpoint, as their index has them; empty if nothing is."""
    for name in names:
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != files[name]["num_bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {files[name]['num_bytes']}"
        if sha256_of_file(path) != files[name]["sha256"]:
            return f"{name} is not what was written"
    return ""


def discard_all_but(directory: Path, kept: list[Path]) -> None:
    """Remove older checkpoints, and what a run left that died while it wrote one."""
    for folder in directory.glob("step-*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def check_checkpoints(root: Path, *, identity: dict[str, Any]) -> None:
    """See that checkpoints below a folder, if there are any, belong to this search.

    Raises:
        MismatchError: they were made with another recipe or other data, or by an earlier version of fastmix.
    """
    if (root / _POINTER_BEFORE).exists():
        raise MismatchError(root, "a search that an earlier version of fastmix has stopped lies here", _START_AFRESH)
    for index in sorted(root.glob(f"**/{_INDEX}")):
        try:
            saved = read_index(index.parent)["identity"]
        except CorruptArtefactError:  # a run goes on from another one
            continue
        for name, value in identity.items():
            if saved.get(name) != value:
                problem = f"a stopped search with another {name.replace('_', ' ')} lies here"
                raise MismatchError(root, problem, _START_AFRESH)
