"""The demo's corpus: eight different sources from what this Python installation carries, in every format that fastmix reads."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fastmix_data.atomic_files import atomic_file
from fastmix_data.errors import InputError
from pipelines.demo import collect
from pipelines.demo.collect import Document

_FEWEST_SOURCES = 5
_HELD_OUT_EVERY = 6
_FEWEST_DOCUMENTS = 12
_TARGET, _TARGET_CHARACTERS = "target", 500_000
_CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True)
class _Source:
    """How a source is written: `held_out` ones get validation files of their own, the others leave it to valid_fraction."""

    name: str
    suffix: str
    explanation: str
    held_out: bool = False


_SOURCES = (
    _Source("topics", ".txt", "the language reference as help() prints it; small", held_out=True),
    _Source("docstrings", ".jsonl.zst", "docstrings of the standard library", held_out=True),
    _Source("code", ".parquet", "the standard library's code, without the docstrings"),
    _Source("headers", ".jsonl.gz", "C headers of Python, numpy and torch"),
    _Source("descriptions", ".jsonl", "what the installed packages say about themselves"),
    _Source("licences", ".jsonl", "licences, no paragraph twice"),
    _Source("tables", ".jsonl.gz", "characters, entities, code pages, file types, locales"),
    _Source("junk", ".jsonl.zst", "words in random order, base64 and checksums: nothing to learn here"),
)


def write_sample_corpus(directory: Path, *, source_characters: int = 1_500_000) -> Path:
    """Write the sources, a target and a commented `recipe.yaml` that learns a mixture for it; download nothing.

    The same installation gives the same bytes, and a file that has them already is left alone.

    Args:
        directory: made if it does not exist; must not hold other files in the sources' folders.
        source_characters: upper limit of a source, roughly; several of them are smaller.

    Returns:
        Path of the recipe.

    Raises:
        InputError: this installation lacks so much that fewer than five sources remain or there is no target, or a
            source's folder holds other files.
    """
    documents = _collect(source_characters)
    absent = [name for name, chosen in documents.items() if len(chosen) < _FEWEST_DOCUMENTS]
    sources = [source for source in _SOURCES if source.name not in absent]
    if len(sources) < _FEWEST_SOURCES or _TARGET in absent:
        problem = f"this Python carries too little text for the sample corpus (nothing for {', '.join(absent)})"
        remedy = "run it with a complete CPython, or write a recipe for files of your own with `fastmix init DIR`"
        raise InputError(sys.base_prefix, problem, remedy)
    if absent:
        print(f"sample corpus: left out {', '.join(absent)}, which this Python installation does not carry", file=sys.stderr)
    files = {source.name: _files_of(directory / source.name, source, documents[source.name]) for source in sources}
    files[_TARGET] = {directory / _TARGET / "modules.jsonl": _jsonl(documents[_TARGET])}
    for name, contents in files.items():
        _refuse_other_files(directory / name, contents)
    for contents in files.values():
        for path, content in contents.items():
            _write_if_changed(path, content)
    num_characters = sum(len(document.text) for source in sources for document in documents[source.name])
    recipe = directory / "recipe.yaml"
    _write_if_changed(recipe, _recipe(sources, num_characters=num_characters, absent=absent).encode())
    return recipe


def _collect(limit: int) -> dict[str, list[Document]]:
    code, docstrings = collect.library_code_and_docstrings(limit)
    documents = {
        "topics": collect.help_topics(limit),
        "docstrings": docstrings,
        "code": code,
        "headers": collect.c_headers(limit),
        "descriptions": collect.package_descriptions(limit),
        "licences": collect.licences(limit),
        "tables": collect.tables(limit),
        "junk": collect.junk(limit, words_of=docstrings),
    }
    everything = [document for chosen in documents.values() for document in chosen]
    return documents | {_TARGET: collect.scientific_modules(_TARGET_CHARACTERS, unlike=everything)}


def _files_of(folder: Path, source: _Source, documents: Sequence[Document]) -> dict[Path, bytes]:
    held_out = documents[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY] if source.held_out else []
    files: dict[Path, bytes] = {}
    for split, chosen in (("train", [document for document in documents if document not in held_out]), ("valid", held_out)):
        if source.suffix == ".txt":
            files |= {folder / split / f"{_file_name(document.id)}.txt": document.text.encode() for document in chosen}
        elif chosen:
            files[folder / f"{split}{source.suffix}"] = _ENCODERS[source.suffix](chosen)
    return files


def _refuse_other_files(folder: Path, files: dict[Path, bytes]) -> None:
    others = sorted(path for path in folder.rglob("*") if path.is_file() and path not in files)
    if others:
        problem = f"not a file of this sample corpus, and the recipe would read it ({len(others)} such in {folder})"
        raise InputError(others[0], problem, "choose an empty folder")


def _file_name(identity: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in identity)


def _jsonl(documents: Sequence[Document]) -> bytes:
    return b"".join(orjson.dumps({"id": document.id, "text": document.text}) + b"\n" for document in documents)


def _parquet(documents: Sequence[Document]) -> bytes:
    buffer = io.BytesIO()
    columns = {"id": [document.id for document in documents], "text": [document.text for document in documents]}
    pq.write_table(pa.table(columns), buffer, compression="zstd", row_group_size=64)
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[[Sequence[Document]], bytes]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": lambda documents: gzip.compress(_jsonl(documents), mtime=0),
    ".jsonl.zst": lambda documents: zstandard.ZstdCompressor(level=3).compress(_jsonl(documents)),
    ".parquet": _parquet,
}


def _write_if_changed(path: Path, content: bytes) -> None:
    """Leave equal files alone: preprocessing recognises its inputs by their time of modification too."""
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_file(path) as file:
        file.write(content)


def _recipe(sources: Sequence[_Source], *, num_characters: int, absent: Sequence[str]) -> str:
    missing = f"#   (left out, since this Python installation does not carry them: {', '.join(absent)})\n" if absent else ""
    millions = max(0.5, round(num_characters / _CHARACTERS_PER_TOKEN / 2 / 1e6, 1))
    template = Path(__file__).parents[1] / "templates" / "demo.yaml"
    return Template(template.read_text(encoding="utf-8")).substitute(
        sources="\n".join(_source_lines(source) for source in sources),
        missing=missing,
        budget=f"{millions:g}M",
    )


def _source_lines(source: _Source) -> str:
    is_text = source.suffix == ".txt"
    files = f"{source.name}/{{}}/*.txt" if is_text else f"{source.name}/{{}}{source.suffix}"
    valid = f', valid_files: "{files.format("valid")}"' if source.held_out else ""
    text = "" if is_text else ", text: text"
    return f'  # {source.explanation}\n  {source.name}: {{files: "{files.format("train")}"{valid}{text}}}'
