"""Whether the columns of a table can be read as what the recipe says of them; the one rule for whoever meets a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from fastmix_data.errors import InputError
from fastmix_data.messages import and_more
from fastmix_data.recipe.fields import Key, Template
from fastmix_data.recipe.sources import TextSection

_KEYS_SHOWN = 40
_TEXT_TYPES = (
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.null(),
)  # fmt: skip


def absent_key(key: str, there: Iterable[str]) -> tuple[str, str]:
    """Problem and remedy of a key or column that is not there."""
    listed = and_more(sorted(there), shown=_KEYS_SHOWN) or "none"
    return f"has no {key!r}; the keys there are {listed}", "name one with text, prompt and completion, or messages"


def missing_key(where: str, key: str, there: Iterable[str]) -> InputError:
    """The error for a text key or column that is not there."""
    return InputError(where, *absent_key(key, there))


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be read as text: bytes can, where they are UTF-8, and nothing but nulls as empty ones."""
    return stored_type(kind) in _TEXT_TYPES


def not_text(where: str, key: str, kind: pa.DataType) -> InputError:
    """The error for a column of another type."""
    return InputError(where, f"column {key!r} holds {kind}, not text", "name another column")


def needed_columns(names: Sequence[str], section: TextSection, where: str) -> list[str]:
    """The columns of a table that a section reads, by their names alone.

    Raises:
        InputError: one is missing, or there are two of its name.
    """
    needed: dict[str, None] = {}
    for key in section.all_keys:
        column = key.written if key.written in names else key.top
        if column in names:
            needed[column] = None
        elif not key.is_optional:
            raise missing_key(where, key.written, names)
    # Tools lie beside the conversation they belong to.
    if section.messages is not None and "tools" in names:
        needed["tools"] = None
    for column in needed:
        if names.count(column) > 1:
            raise InputError(where, f"has {names.count(column)} columns named {column!r}", "rename or remove one")
    return list(needed)


def check_columns(schema: pa.Schema, section: TextSection, where: str) -> list[str]:
    """The columns of a table that a section reads, found to be there and of a type that can be read.

    Raises:
        InputError: see `needed_columns`; or one holds something else than text.
    """
    needed = needed_columns(schema.names, section, where)
    for field in section.fields:
        if isinstance(field, Template):
            for key in field.all_keys():
                _require(_holds_scalar(kind := _type_of(key, schema, where)), where, key, kind)
        else:
            kind = _type_of(field, schema, where)
            is_list = section.messages is not None and _element(stored_type(kind)) is not None
            _require(is_list or holds_text(kind), where, field, kind)
    return needed


def _require(is_fit: bool, where: str, key: Key, kind: pa.DataType) -> None:
    if not is_fit:
        raise not_text(where, key.written, kind)


def _holds_scalar(kind: pa.DataType) -> bool:
    """Whether a template can take its values."""
    stored = stored_type(kind)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return holds_text(stored) or any(is_of(stored) for is_of in numbers)


def _type_of(key: Key, schema: pa.Schema, where: str) -> pa.DataType:
    """Type of what a key leads to; null where that is not there, or only the values tell."""
    if key.written in schema.names:
        return schema.field(key.written).type
    if key.top not in schema.names:
        return pa.null()
    kind = schema.field(key.top).type
    for step in key.steps[1:]:
        if is_json(kind):
            return pa.null()
        kind = stored_type(kind)
        if pa.types.is_null(kind):
            break
        if not isinstance(step, str):
            inner = _element(kind)
        elif pa.types.is_struct(kind):
            index = kind.get_field_index(step)
            if index < 0 and key.is_optional:
                return pa.null()
            if index < 0:
                raise missing_key(where, key.written, [kind.field(number).name for number in range(kind.num_fields)])
            inner = kind.field(index).type
        else:
            inner = None
        if inner is None:
            problem = (
                f"column {key.written!r} leads through {kind}, which has no {step if isinstance(step, str) else 'elements'!r}"
            )
            raise InputError(where, problem, "name another column")
        kind = inner
    return kind


def _element(kind: pa.DataType) -> pa.DataType | None:
    is_list = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return kind.value_type if any(is_of(kind) for is_of in is_list) else None


def is_json(kind: pa.DataType) -> bool:
    """Whether values of this type are JSON text, as `datasets` keeps what differs in type from record to record."""
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def holds_json(kind: pa.DataType) -> bool:
    """Whether there is JSON text in it at any depth."""
    return is_json(kind) or any(holds_json(kind.field(number).type) for number in range(kind.num_fields))


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves: dictionaries and extension types are ways to store them."""
    while True:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind
