"""What `fastmix export --to list` shows."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from fastmix_data.errors import RecipeError
from fastmix_data.exports.format import ExportFormat
from fastmix_data.exports.formats import NAMES, export_format
from fastmix_data.recipe.exports import unknown_format


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
    return {"formats": contents}, "\n\n".join(_paragraph(name, found) for name, found in formats.items())


def _paragraph(name: str, found: ExportFormat) -> str:
    lines = [f"{name}: read by {found.reader}", f"writes {found.writes}"]
    lines += [f"{what}: {how}" for what, how in asdict(found.keeps).items()]
    return "\n".join(lines[:1] + [textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    ") for line in lines[1:]])
