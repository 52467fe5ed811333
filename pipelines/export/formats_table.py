"""What `fastmix export --to list` shows."""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from fastmix_data.errors import RecipeError
from fastmix_data.exports.formats import NAMES, export_format
from fastmix_data.text_table import aligned


def known_format(name: str) -> str:
    """The name itself.

    Raises:
        RecipeError: there is no such format; says which there are.
    """
    if name in NAMES:
        return name
    near = get_close_matches(name, NAMES, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise RecipeError(f"--to {name}", f"there is no such format{meant}", f"the formats are {', '.join(NAMES)}")


def formats_table() -> tuple[dict[str, Any], str]:
    """Every format with what its reader sees of a manifest, for --json and for people."""
    formats = {name: export_format(name) for name in NAMES}
    contents = {name: {"reader": f.reader, "writes": f.writes, "keeps": asdict(f.keeps)} for name, f in formats.items()}
    rows = [["format", "read by", "order", "shares", "epochs", "masks", "examples"]]
    rows += [[name, f.reader, *asdict(f.keeps).values()] for name, f in formats.items()]
    return {"formats": contents}, aligned(rows, flush_left=range(len(rows[0])))
