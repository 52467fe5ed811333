"""What a recipe may say where it names text in a record: a key, a path below a key, or a template over several of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_NAME = r"[^.\[\]{}]+"
_IN_LIST = r"\[(?:-?\d+|\*)\]"
_PATH = re.compile(rf"{_NAME}(?:{_IN_LIST})*(?:\.{_NAME}(?:{_IN_LIST})*)*")
_STEP = re.compile(rf"({_NAME})|\[(-?\d+|\*)\]")
_BRACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Key:
    """A key of a record, or a path to what lies below one.

    Attributes:
        written: as the recipe has it. A record that has a key of this very name, dots and all, is meant by it.
        steps: names of keys, positions in lists (from the end if negative), and None for every element of a list.
        is_optional: in a template, a record need not have it.
    """

    written: str
    steps: tuple[str | int | None, ...]
    is_optional: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is a key of the record itself."""
        return len(self.steps) == 1

    @property
    def is_repeated(self) -> bool:
        """Whether it stands for every element of a list."""
        return None in self.steps

    @property
    def top(self) -> str:
        """Its first key."""
        return str(self.steps[0])


@dataclass(frozen=True)
class Template:
    """Text with keys in it: lines, each of which is made of fixed text and keys."""

    written: str
    lines: tuple[tuple[str | Key, ...], ...]

    def all_keys(self) -> Iterator[Key]:
        """All keys, in their order."""
        return (piece for line in self.lines for piece in line if isinstance(piece, Key))


Field = Key | Template


@lru_cache(maxsize=1024)
def parse_field(written: str) -> Field:
    """Read what the recipe says for `text`, `prompt` or `completion`: with braces it is a template, without a key.

    Raises:
        ValueError: it is neither; says where.

    >>> parse_field("choices[0].text").steps
    ('choices', 0, 'text')
    >>> [key.written for key in parse_field("{instruction}\\n{input?}").all_keys()]
    ['instruction', 'input']
    """
    return _parse_template(written) if "{" in written or "}" in written else parse_key(written)


def parse_key(written: str, *, is_optional: bool = False) -> Key:
    """Read a key or a path.

    Raises:
        ValueError: it is none.
    """
    if not _PATH.fullmatch(written):
        raise ValueError(f"{written!r} is not a key; write key, key.below, key[0] or key[*].below")
    steps = (name or (None if place == "*" else int(place)) for name, place in _STEP.findall(written))
    return Key(written, tuple(steps), is_optional)


def _parse_template(written: str) -> Template:
    # Split before anything is filled in: a line end within a value is no end of a line of the template.
    template = Template(written, tuple(tuple(_pieces(line, written)) for line in written.split("\n")))
    if not any(template.all_keys()):
        raise ValueError(f"the template {written!r} names no key; a key stands in single braces, {{{{ is a brace itself")
    return template


def _pieces(line: str, written: str) -> Iterator[str | Key]:
    fixed, end = "", 0
    for found in _BRACE.finditer(line):
        fixed += line[end : found.start()]
        end = found.end()
        if found[0] in ("{{", "}}"):
            fixed += found[0][0]
        elif found[1] is None:
            raise ValueError(
                f"the template {written!r} has a lone {found[0]!r}; close it, or write {found[0] * 2} for the brace itself"
            )
        else:
            if fixed:
                yield fixed
                fixed = ""
            yield parse_key(found[1].removesuffix("?"), is_optional=found[1].endswith("?"))
    fixed += line[end:]
    if fixed:
        yield fixed
