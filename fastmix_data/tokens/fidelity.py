"""How much of a text a tokenizer loses: what it drops, and what it has no token for.

Measured on samples by encoding and decoding. White space and the form of a letter (case, accents, width) are no loss: many tokenizers
change them on purpose. Letters, digits and signs that do not come back are.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fastmix_data.errors import InputError
from fastmix_data.tokens.encoder import Encoder
from fastmix_data.tokens.loss_borders import is_lossless

# Few characters say little about a source: as if at least so many had been looked at.
_FEWEST_CHARACTERS = 1024
_SHOWN_CHARACTERS = 60
_SPACE = re.compile(r"(\s+)")


@dataclass(frozen=True)
class Loss:
    """What became of a text.

    Attributes:
        num_characters: characters that count, of the text.
        num_lost: of these, those that did not come back.
        decoded: the text that came back.
        is_changed: whether letters came back in another form, as in lower case.
    """

    num_characters: int
    num_lost: int
    decoded: str
    is_changed: bool


@dataclass(frozen=True)
class Example:
    """A place where something was lost or changed."""

    place: str
    text: str
    decoded: str

    def __str__(self) -> str:
        """The place, the text and what it decodes to."""
        shown = [
            text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..." for text in (self.text, self.decoded)
        ]
        return f"{self.place}: {shown[0]!r} decodes to {shown[1]!r}"


class Fidelity:
    """Looks at what one encoder makes of texts.

    Attributes:
        is_lossless: whether, by its construction, it loses nothing: then there is nothing to look at.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Nothing is encoded yet."""
        self.is_lossless = is_lossless(encoder.content)
        self._encoder = encoder

    def look(self, text: str) -> Loss:
        """Encode and decode one text; control tokens in it come back as they are."""
        decoded = self._encoder.decoded(text)
        before, after = _characters(text), _characters(decoded)
        num_lost = (before - after).total() if before != after else 0
        return Loss(before.total(), num_lost, decoded, num_lost == 0 and _visible(text) != _visible(decoded))


def _characters(text: str) -> Counter[str]:
    """Characters that count, each in its plainest form."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    counts = Counter(unicodedata.normalize("NFKD", plain))
    return Counter({char: count for char, count in counts.items() if _is_visible(char)})


def _is_visible(char: str) -> bool:
    # Marks are accents and the like; control and format characters, and spaces, are nothing to see.
    return char.isalnum() or unicodedata.category(char)[0] in "LNPS"


def _visible(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


@dataclass
class LossCount:
    """What was lost of a source's samples so far.

    Attributes:
        num_characters, num_lost: of all samples.
        example: the first loss.
    """

    num_characters: int = 0
    num_lost: int = 0
    example: Example | None = None

    def add(self, loss: Loss, *, place: str, text: str) -> None:
        """Count one sample."""
        self.num_characters += loss.num_characters
        self.num_lost += loss.num_lost
        if loss.num_lost and self.example is None:
            self.example = Example(place, text, loss.decoded)

    def require_below(self, limit: float, *, where: str) -> None:
        """Refuse a source of which too much is lost.

        Raises:
            InputError: shows a text and what it decodes to.
        """
        if self.num_lost > limit * max(self.num_characters, _FEWEST_CHARACTERS):
            share = self.num_lost / self.num_characters
            problem = (
                f"the tokenizer loses {share:.1%} of the characters looked at, over the limit of {limit:.1%}; {self.example}"
            )
            remedy = "choose a tokenizer that knows this text, or raise tokenizer.max_unknown_fraction"
            raise InputError(where, problem, remedy)


def excerpts(texts: Sequence[str], *, count: int, length: int) -> list[tuple[int, str]]:
    """Parts of some texts, spread over all of them: (number of the text, part), the same for the same texts.

    Cut between words where there are any: half a word may well be unknown.
    """
    step = max(1, len(texts) // count)
    found = []
    for place, number in enumerate(range(0, len(texts), step)):
        text = texts[number]
        # Not always the beginning: what is long is looked at further in each time.
        start = (len(text) * place // count) % max(1, len(text) - length + 1)
        stop = start + length
        words = _SPACE.split(text[start:stop])
        is_cut = (start > 0 and not text[start - 1].isspace(), stop < len(text) and not text[stop].isspace())
        whole = "".join(words[2 * is_cut[0] : len(words) - 2 * is_cut[1]])
        found.append((number, whole or text[start:stop]))
    return found[:count]
