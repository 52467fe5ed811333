"""What `fastmix export --to list` shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastmix_data.errors import RecipeError
from fastmix_data.exports.formats import NAMES, export_format
from fastmix_data.recipe.exports import unknown_format
from fastmix_data.text_table import aligned


def known_format(name: str) -> str:
    """The name itself.

    Raises:
        RecipeError: there is no such format; says which there are.
    """
    if (unknown := unknown_format(name)) is not None:
        raise RecipeError(f"--to {name}", *unknown)
    return name


def formats_table() -> tuple[dict[str, Any], str]:
    """Every format with what its reader sees of a manifest, for --json and for people."""
    formats = {name: export_format(name) for name in NAMES}
    contents = {name: {"reader": f.reader, "writes": f.writes, "keeps": asdict(f.keeps)} for name, f in formats.items()}
    rows = [["format", "read by", "order", "shares", "epochs", "masks", "examples"]]
    rows += [[name, f.reader, *asdict(f.keeps).values()] for name, f in formats.items()]
    return {"formats": contents}, aligned(rows, flush_left=range(len(rows[0])))
