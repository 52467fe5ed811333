"""What readers leave out or repair: counted, and said once at the end."""

from __future__ import annotations

from dataclasses import dataclass

from fastmix_data.errors import InputError


@dataclass
class ReadCounts:
    """Documents whose broken UTF-8 was replaced, and documents without text, which are left out."""

    num_bad_text: int = 0
    num_empty: int = 0


def refuse_bad_text(where: str, error: UnicodeError) -> InputError:
    """The error for broken UTF-8 under `on_bad_text: refuse`."""
    return InputError(f"{where}: not valid UTF-8 ({error.args[-1]}); repair it, or set on_bad_text: replace")
