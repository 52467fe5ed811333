"""The recipe's exports: trainers' formats that a run ends with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from fastmix_data.messages import nearest
from fastmix_data.recipe.section import Section
from fastmix_data.units import ByteCount

DEFAULT_FILE_BYTES = 1 << 31
# Those of `fastmix export` too. Here, so that a recipe with another is refused when it is read.
EXPORT_NAMES = (
    *("shards", "webdataset", "mds", "litdata", "olmo", "datatrove"),
    *("megatron", "nemo", "energon", "huggingface", "torchtitan"),
)


def unknown_format(name: str) -> tuple[str, str] | None:
    """Problem and remedy if there is no such format.

    >>> unknown_format("webdatset")[0]
    'there is no such format; did you mean webdataset?'
    """
    if name in EXPORT_NAMES:
        return None
    near = nearest(name, EXPORT_NAMES)
    return f"there is no such format{f'; did you mean {near}?' if near else ''}", f"the formats are {', '.join(EXPORT_NAMES)}"


def _as_sections(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    return [{"to": single} if isinstance(single, str) else single for single in values]


class ExportSection(Section):
    """A format to write the manifest in; the format's name alone is enough."""

    to: str = Field(description="Whose format; `fastmix export --to list` shows them all.")
    dir: str | None = Field(None, description="Folder to write, relative to the recipe; WORKDIR/export-FORMAT when not given.")
    files: Literal["reference", "hardlink", "copy"] = Field(
        "reference",
        description="Whole shards, where the format takes them as they are: named where they are, or linked or copied into the folder.",
    )
    max_file_bytes: ByteCount = Field(
        DEFAULT_FILE_BYTES, description="Bytes; a file of converted tokens is closed before it is larger."
    )

    @field_validator("to")
    @classmethod
    def _known(cls, value: str) -> str:
        if (unknown := unknown_format(value)) is not None:
            problem, remedy = unknown
            raise ValueError(f"{value!r}: {problem.replace('; ', ', ')}; {remedy}")
        return value


Exports = Annotated[
    tuple[ExportSection, ...],
    BeforeValidator(_as_sections, json_schema_input_type=str | ExportSection | list[str | ExportSection]),
]
