"""Pieces of messages that many of them share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LONGEST_LINE = 200


def and_more(texts: Sequence[str], *, shown: int = 4, separator: str = ", ", more: str = "more") -> str:
    """The first of many texts, and how many there are besides.

    >>> and_more(["a", "b", "c"], shown=2), and_more(["a", "b"])
    ('a, b and 1 more', 'a, b')
    """
    rest = len(texts) - shown
    return separator.join(texts[:shown]) + (f" and {rest} {more}" if rest > 0 else "")


def joined(parts: Sequence[str]) -> str:
    """Parts of a sentence.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The known word most like this one, or an empty text.

    >>> nearest("serach", ["search", "emit"]), nearest("xyz", ["search"])
    ('search', '')
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def first_line(error: BaseException) -> str:
    """What another library's error says, cut to one short line; its class where it says nothing.

    >>> first_line(ValueError("no such file\\nat line 3")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_LONGEST_LINE]


def shown(path: str) -> str:
    r"""A path as text of any use can hold it: bytes of a name that are not UTF-8 are written as `\xNN`.

    >>> shown("caf\udce9.txt")
    'caf\\xe9.txt'
    """
    return path if path.isascii() else path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
