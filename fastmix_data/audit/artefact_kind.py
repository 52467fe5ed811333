"""What a path is, and which catalog knows it: for commands that are given any artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import InputError
from fastmix_data.manifest.estimated import PLAN_KIND
from fastmix_data.manifest.manifest import KIND
from fastmix_data.shards.catalog import Catalog, ShardRow, load_catalog
from fastmix_data.workdir import CATALOG_FILE, MANIFEST_FILE, PLAN_FILE, workdir_above

ArtefactKind = Literal["shard", "catalog", "manifest", "plan", "mixture", "workdir"]
_REMEDY = "give a shard (.tar), catalog.parquet, mixture.json, a manifest or a workdir"


def kind_of(path: Path) -> ArtefactKind:
    """Tell which artefact a path is.

    Raises:
        InputError: it does not exist, or is none.
        CorruptArtefactError: a JSON file that is not JSON.
    """
    if not path.exists():
        raise InputError(path, "no such file or folder", _REMEDY)
    if path.is_dir():
        if (path / MANIFEST_FILE).is_file():
            return "manifest"
        if (path / PLAN_FILE).is_file():
            return "plan"
        if (path / CATALOG_FILE).is_file():
            return "workdir"
    elif path.suffix == ".tar":
        return "shard"
    elif path.name == CATALOG_FILE:
        return "catalog"
    elif path.suffix == ".json":
        # By content: a mixture may be called anything, for `fastmix emit --mixture` takes any file.
        content = read_json(path)
        if isinstance(content, dict) and (content.get("kind") == KIND or path.name == MANIFEST_FILE):
            return "manifest"
        if isinstance(content, dict) and content.get("kind") == PLAN_KIND:
            return "plan"
        if isinstance(content, dict) and "weights" in content:
            return "mixture"
    raise InputError(path, "not an artefact of fastmix", _REMEDY)


def catalog_row_of(shard: Path) -> tuple[Catalog, ShardRow] | None:
    """The catalog above a shard and the shard's row in it; None if there is no such row."""
    workdir = workdir_above(shard)
    if workdir is None:
        return None
    catalog = load_catalog(workdir.catalog)
    relative = shard.resolve().relative_to(workdir.root).as_posix()
    row = next((row for row in catalog.rows if row.path == relative), None)
    return None if row is None else (catalog, row)
