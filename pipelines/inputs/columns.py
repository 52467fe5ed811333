"""Whether a key or column of the input can be read as text, and the errors for those that cannot."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from fastmix_data.errors import InputError


def missing_key(where: str, key: str, there: Iterable[str]) -> InputError:
    """The error for a text key or column that is not there."""
    listed = ", ".join(sorted(there)) or "none"
    return InputError(where, f"has no {key!r}; the keys there are {listed}", "name one with text, or prompt and completion")


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be read as text; bytes can, where they are UTF-8."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return value in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())


def not_text(where: str, key: str, kind: pa.DataType) -> InputError:
    """The error for a column of another type."""
    return InputError(where, f"column {key!r} holds {kind}, not text", "name another column")
