"""What a path is, and where the rest of its workdir lies: for commands that are given any artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastmix_data.artefacts import read_json
from fastmix_data.errors import InputError
from fastmix_data.manifest.manifest import KIND, MANIFEST_FILE
from fastmix_data.shards.catalog import Catalog, ShardRow, load_catalog

CATALOG_FILE = "catalog.parquet"
TOKENIZER_FILE = "tokenizer/tokenizer.json"
MIXTURE_FILE = "search/mixture.json"
TRAJECTORY_FILE = "search/trajectory.parquet"
MANIFEST_FOLDER = "manifest"
DOCUMENTS_FOLDER = "documents"
ArtefactKind = Literal["shard", "catalog", "manifest", "mixture", "workdir"]
_KINDS = "a shard (.tar), catalog.parquet, mixture.json, a manifest or a workdir"


def kind_of(path: Path) -> ArtefactKind:
    """Tell which artefact a path is.

    Raises:
        InputError: it does not exist, or is none.
        CorruptArtefactError: a JSON file that is not JSON.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give {_KINDS}")
    if path.is_dir():
        if (path / MANIFEST_FILE).is_file():
            return "manifest"
        if (path / CATALOG_FILE).is_file():
            return "workdir"
    elif path.suffix == ".tar":
        return "shard"
    elif path.suffix == ".parquet" and path.name == CATALOG_FILE:
        return "catalog"
    elif path.suffix == ".json":
        content = read_json(path)
        if isinstance(content, dict) and (content.get("kind") == KIND or path.name == MANIFEST_FILE):
            return "manifest"
        if isinstance(content, dict) and "weights" in content:
            return "mixture"
    raise InputError(f"{path}: not an artefact of fastmix; give {_KINDS}")


def workdir_of(path: Path) -> Path | None:
    """Nearest folder at or above a path that has a catalog."""
    start = path.resolve()
    return next((folder for folder in (start, *start.parents) if (folder / CATALOG_FILE).is_file()), None)


def catalog_row_of(shard: Path) -> tuple[Catalog, ShardRow] | None:
    """The catalog above a shard and the shard's row in it; None if there is no such row."""
    workdir = workdir_of(shard)
    if workdir is None:
        return None
    catalog = load_catalog(workdir / CATALOG_FILE)
    relative = shard.resolve().relative_to(workdir).as_posix()
    row = next((row for row in catalog.rows if row.path == relative), None)
    return None if row is None else (catalog, row)
