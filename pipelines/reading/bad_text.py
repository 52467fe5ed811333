"""Broken text: replaced and counted, or refused."""

from __future__ import annotations

from dataclasses import dataclass

from fastmix_data.recipe.sources import TextSection
from pipelines.reading.bad_records import BadRecord

NOT_UTF8, WRITE_UTF8 = "is UTF-16 or UTF-32, not UTF-8", "write it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does"


@dataclass
class DocumentCounts:
    """Of documents that were read.

    Attributes:
        num_documents, num_text_bytes: written, in either split.
        num_bad_text: their broken UTF-8 was replaced.
        num_empty: without text, or conversations without an answer, and left out.
        num_bad_records: could not be read, and left out.
        num_leaked_documents: held out elsewhere, and left out of the training split.
        num_spelled_as_text, num_spelled_tokens: control tokens that they spell, which became ordinary text, or the tokens.
        num_unknown_tokens: tokens that stand for what the tokenizer does not know.
        num_checked_characters, num_lost_characters: of samples that were encoded and decoded, and of these, what did not come back.
        num_truncated, num_skipped, num_split: examples longer than they can be kept whole, by what became of them.
        num_without_loss: examples, or pieces of one, that had no token with loss (any more), and were left out.
    """

    num_documents: int = 0
    num_text_bytes: int = 0
    num_bad_text: int = 0
    num_empty: int = 0
    num_bad_records: int = 0
    num_leaked_documents: int = 0
    num_spelled_as_text: int = 0
    num_spelled_tokens: int = 0
    num_unknown_tokens: int = 0
    num_checked_characters: int = 0
    num_lost_characters: int = 0
    num_truncated: int = 0
    num_skipped: int = 0
    num_split: int = 0
    num_without_loss: int = 0


def decode(content: bytes, section: TextSection) -> tuple[str, bool]:
    """Text of some bytes, and whether U+FFFD had to take the place of broken UTF-8 in it.

    Raises:
        BadRecord: it is broken, and the section says `on_bad_text: refuse`.
    """
    try:
        return content.decode(), False
    except UnicodeDecodeError as error:
        if section.on_bad_text == "refuse":
            raise BadRecord(f"not valid UTF-8 ({error.reason})", "repair it, or set on_bad_text: replace") from error
    return content.decode(errors="replace"), True


def without_surrogates(text: str, section: TextSection) -> tuple[str, bool]:
    """The text with every lone surrogate replaced by U+FFFD, and whether there was one.

    Raises:
        BadRecord: there is, and the section says `on_bad_text: refuse`.
    """
    if text.isascii():
        return text, False
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Through UTF-16, so that two halves which belong together, as JSON escapes them, become the character that they are.
        cleaned = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if section.on_bad_text == "refuse":
            raise BadRecord("holds half a surrogate pair", "repair it, or set on_bad_text: replace") from error
        return cleaned, True
    return text, False
