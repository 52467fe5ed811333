"""Which formats are read, by the ending of a file's name; capitals do not count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

# `jsonl` are JSON Lines and can be cut anywhere; what a .json file holds, lines or one array, only its content says.
Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "json", "json.gz", "json.zst", "parquet", "txt"]
_FORMATS: tuple[Format, ...] = get_args(Format)
_FORMAT_OF_ENDING: dict[str, Format] = {f".{name}": name for name in _FORMATS} | {
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl.gz",
    ".ndjson.zst": "jsonl.zst",
}
READABLE = ".jsonl, .ndjson, .json (also .gz, .zst), .parquet, .txt"


def ending_of(name: str) -> str:
    """The ending of a readable file's name, as it is written; empty if it is none of ours.

    >>> ending_of("a/Train.JSONL.gz"), ending_of("a.csv")
    ('.JSONL.gz', '')
    """
    start = name.rfind(".")
    longer = name.rfind(".", 0, max(start, 0))
    return next((name[at:] for at in (longer, start) if at >= 0 and name[at:].lower() in _FORMAT_OF_ENDING), "")


def format_of(name: str) -> Format | None:
    """The format that a file's name ends with; None if it is none of ours."""
    return _FORMAT_OF_ENDING.get(ending_of(name).lower())


def is_json(kind: Format) -> bool:
    """Whether records have keys in JSON."""
    return kind.startswith("json")


def remedy_for(name: str) -> str:
    """What to do with a file of none of our formats.

    >>> remedy_for("a.txt.gz"), remedy_for("a.jsonl.bz2")
    ('decompress it: only JSON is read compressed', 'decompress it, or compress it with gzip or zstd')
    """
    inner = format_of(name.rpartition(".")[0])
    if inner in ("txt", "parquet"):
        return "decompress it: only JSON is read compressed"
    if inner is not None:
        return "decompress it, or compress it with gzip or zstd"
    return f"use {READABLE} or a {{dataset: ...}} source"


def list_endings(names: Iterable[str]) -> str:
    """How many of some names end in what, the most frequent first.

    >>> list_endings(["a.md", "b.md", "c.txt.gz", "README"])
    '2 ending in .md, 1 ending in .txt.gz, 1 ending in no extension'
    """
    endings: Counter[str] = Counter()
    for name in names:
        first, *suffixes = name.rpartition("/")[2].lstrip(".").split(".")
        # Versions and dates have points too: a compression's ending is shown with the one before it.
        shown = suffixes[-2:] if suffixes and suffixes[-1].lower() in ("gz", "zst", "bz2", "xz", "zip") else suffixes[-1:]
        endings[f".{'.'.join(shown)}" if first and shown else "no extension"] += 1
    return ", ".join(f"{count} ending in {ending}" for ending, count in endings.most_common(3))
