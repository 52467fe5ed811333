"""Text that is broken, empty or not there: what can be replaced or left out is counted and said once, the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastmix_data.errors import InputError
from fastmix_data.recipe.sources import TextSection


@dataclass
class DocumentCounts:
    """Of documents that were read.

    Attributes:
        num_documents, num_text_bytes: written, in either split.
        num_bad_text: their broken UTF-8 was replaced.
        num_empty: without text, and left out.
        num_leaked_documents: held out elsewhere, and left out of the training split.
    """

    num_documents: int = 0
    num_text_bytes: int = 0
    num_bad_text: int = 0
    num_empty: int = 0
    num_leaked_documents: int = 0


def decode(content: bytes, section: TextSection, where: Callable[[int], str]) -> tuple[str, bool]:
    """Text of some bytes, and whether U+FFFD had to take the place of broken UTF-8 in it.

    Args:
        where: names the place of a byte of `content`; a function because only errors need it, and it may take counting lines.
    Raises:
        InputError: it is broken, and the section says `on_bad_text: refuse`.
    """
    try:
        return content.decode(), False
    except UnicodeDecodeError as error:
        if section.on_bad_text == "refuse":
            problem = f"not valid UTF-8 ({error.reason})"
            raise InputError(where(error.start), problem, "repair it, or set on_bad_text: replace") from error
    return content.decode(errors="replace"), True
