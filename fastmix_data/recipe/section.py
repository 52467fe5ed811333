"""What all sections of the recipe have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


FilePatterns = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | list[str]), Field(min_length=1)]


class Section(BaseModel):
    """A part of the recipe: immutable, and no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def require_one(section: Section, names: tuple[str, ...]) -> None:
    """Refuse a section in which not exactly one of the named keys is given."""
    given = [name for name in names if getattr(section, name) not in (None, False)]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}" + (f"; got {', '.join(given)}" if given else ""))
