"""Text that every Python installation carries: the library's code and docstrings, help topics, C headers, licences, packages.

Nothing is downloaded. What an origin gives depends on the Python version and on the packages installed, and is the same every time
on the same installation. Every function returns documents in a fixed order, at most about `limit` characters of them.
"""

from __future__ import annotations

import ast
import base64
import codecs
import errno
import hashlib
import html.entities
import importlib.metadata
import importlib.util
import itertools
import locale
import mimetypes
import random
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_NOT_LIBRARY = frozenset(
    [
        "test",
        "tests",
        "idlelib",
        "site-packages",
        "dist-packages",
        "pydoc_data",
        "encodings",
        "lib2to3",
        "ensurepip",
        "turtledemo",
    ]
)
_LICENCE_FILE = re.compile(r"(^|/)(licen[cs]e|copying|notice)[^/]*$", re.IGNORECASE)
_LONGEST_DOCUMENT = 40_000
_SHORTEST_DOCSTRING = 60
_TOPIC_PART = 3_000
_SCIENTIFIC = ("numpy", "scipy", "pandas")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """A text and where it comes from."""

    id: str
    text: str


def library_code_and_docstrings(limit: int) -> tuple[list[Document], list[Document]]:
    """Modules of the standard library twice: their code with docstrings cut out, and the docstrings alone.

    The two share no text, so that one can be held against the other.
    """
    for_code, for_docstrings = itertools.tee(_library_modules())  # read only as far as the longer of the two goes
    code = _within((code for code, _ in for_code), limit)
    docstrings = _within((docstrings for _, docstrings in for_docstrings), limit)
    return _sorted(code), _sorted(docstrings)


def _library_modules() -> Iterator[tuple[Document, Document]]:
    seen: set[str] = set()
    for module in _files(Path(sysconfig.get_path("stdlib")), "*.py"):
        tree = _parse(module.text)
        if tree is None:
            continue
        documented = list(_documented(tree, _module_name(module.id)))
        code = Document(module.id, _without_docstrings(module.text, documented).strip())
        yield code, Document(module.id, "\n\n".join(_docstrings(documented, seen)))


def help_topics(limit: int) -> list[Document]:
    """The language reference as `help()` shows it, in parts of a few thousand characters, no paragraph twice."""
    if importlib.util.find_spec("pydoc_data") is None or importlib.util.find_spec("pydoc_data.topics") is None:
        return []
    from pydoc_data.topics import topics

    parts: list[Document] = []
    seen: set[str] = set()
    for name in sorted(topics):
        for number, text in enumerate(_in_parts(_new_paragraphs(topics[name], seen))):
            parts.append(Document(f"{name}-{number:02d}", text))
    return _within(parts, limit)


def c_headers(limit: int) -> list[Document]:
    """C and C++ headers of Python itself, then of numpy and torch."""
    roots = [("python", Path(sysconfig.get_path("include")))]
    roots += [("numpy", folder) for folder in _package_folders("numpy")]
    roots += [("torch", folder / "include" / "c10") for folder in _package_folders("torch")]
    return _sorted(_within((file for package, root in roots for file in _files(root, "*.h", prefix=f"{package}/")), limit))


def scientific_modules(limit: int, *, unlike: Iterable[Document]) -> list[Document]:
    """Modules of numpy, scipy and pandas as they are, code with its documentation in between; as much of each.

    Args:
        unlike: a module that has a paragraph of one of these is left out.
    """
    said = {paragraph for document in unlike for paragraph in _long_paragraphs(document.text)}
    modules: list[Document] = []
    for package in _SCIENTIFIC:
        files = (file for folder in _package_folders(package) for file in _files(folder, "*.py", prefix=f"{package}/"))
        modules += _within((file for file in files if said.isdisjoint(_long_paragraphs(file.text))), limit // len(_SCIENTIFIC))
    return modules


def licences(limit: int) -> list[Document]:
    """Licences of Python and of the installed packages, no paragraph twice."""
    seen: set[str] = set()
    files = [("python", Path(sysconfig.get_path("stdlib")) / "LICENSE.txt")]
    for name, distribution in _distributions():
        wanted = sorted(str(file) for file in distribution.files or [] if _LICENCE_FILE.search(str(file)))
        files += [(f"{name}/{file}", Path(str(distribution.locate_file(file)))) for file in wanted]
    texts = ((name, "\n\n".join(_new_paragraphs(_read(path), seen))) for name, path in files if path.is_file())
    return _within((Document(name, text) for name, text in texts), limit)


def package_descriptions(limit: int) -> list[Document]:
    """What the installed packages say about themselves: mostly Markdown, with commands and links."""
    described = ((name, _description(distribution)) for name, distribution in _distributions())
    return _within((Document(name, text) for name, text in described if len(text) > _SHORTEST_DOCSTRING), limit)


def tables(limit: int) -> list[Document]:
    """Rows of characters, entities, code pages, file types, locales and error numbers."""
    documents = [
        Document("html-entities", "\n".join(f"&{name}\t{text}" for name, text in sorted(html.entities.html5.items()))),
        Document("mime-types", "\n".join(f"{end}\t{kind}" for end, kind in sorted(mimetypes.MimeTypes().types_map[True].items()))),
        Document("locales", "\n".join(f"{alias}\t{name}" for alias, name in sorted(locale.locale_alias.items()))),
        Document("errors", "\n".join(f"{number}\t{name}" for number, name in sorted(errno.errorcode.items()))),
        *(_code_page(name) for name in ("cp037", "cp437", "cp500", "cp850", "cp866", "cp1250", "cp1251", "cp1253", "koi8_r", "mac_roman")),
    ]  # fmt: skip
    return _within([*documents, *_character_rows()], limit)


def junk(limit: int, *, words_of: Iterable[Document]) -> list[Document]:
    """Text that teaches nothing: words in random order, base64, checksums."""
    rng = random.Random("junk 0")
    words = [word for document in words_of for word in document.text.split()] or ["nothing"]
    makers = {
        "words": lambda: " ".join(rng.choices(words, k=600)),
        "base64": lambda: base64.encodebytes(rng.randbytes(2_000)).decode(),
        "checksums": lambda: "\n".join(f"{rng.randbytes(16).hex()}  {rng.choice(words)}" for _ in range(60)),
    }
    documents: list[Document] = []
    for number, kind in enumerate(itertools.cycle(makers)):
        if limit <= 0:
            break
        documents.append(Document(f"{kind}-{number:05d}", makers[kind]()))
        limit -= len(documents[-1].text)
    return documents


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _shuffled(paths: Iterable[Path]) -> list[Path]:
    """Paths in an order that mixes folders and is the same everywhere, so that a limit takes from all of them."""
    return sorted(paths, key=lambda path: hashlib.sha256("/".join(path.parts[-3:]).encode()).digest())


def _files(root: Path, pattern: str, *, prefix: str = "") -> Iterator[Document]:
    """Files of a folder without its tests, in an order that mixes its subfolders, read as they are asked for."""
    for path in _shuffled(root.rglob(pattern)):
        name = path.relative_to(root)
        if not _NOT_LIBRARY.intersection(name.parts):
            yield Document(f"{prefix}{name.as_posix()}", _read(path))


def _sorted(documents: list[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: document.id)


def _within(documents: Iterable[Document], limit: int) -> list[Document]:
    """The first documents that say something, none of them endless, until there is enough."""
    chosen: list[Document] = []
    for document in documents:
        if limit <= 0:
            break
        if document.text.strip():
            chosen.append(Document(document.id, document.text[:_LONGEST_DOCUMENT]))
            limit -= len(chosen[-1].text)
    return chosen


def _parse(source: str) -> ast.Module | None:
    """The syntax tree, or None for the library's few deliberately broken files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _documented(tree: ast.Module, name: str) -> Iterator[tuple[str, _Documented]]:
    """The module, its classes and functions, in the order of the file, with their dotted names."""
    stack: list[tuple[str, ast.AST]] = [(name, tree)]
    while stack:
        prefix, node = stack.pop()
        if isinstance(node, _Documented):
            yield prefix, node
        for child in reversed(list(ast.iter_child_nodes(node))):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                stack.append((f"{prefix}.{child.name}", child))
            elif isinstance(child, ast.stmt | ast.excepthandler):
                stack.append((prefix, child))


def _docstrings(documented: Iterable[tuple[str, _Documented]], seen: set[str]) -> Iterator[str]:
    for name, node in documented:
        text = ast.get_docstring(node)
        if text and len(text) >= _SHORTEST_DOCSTRING and text not in seen:
            seen.add(text)
            yield f"{name}\n\n{text}"


def _without_docstrings(source: str, documented: Iterable[tuple[str, _Documented]]) -> str:
    lines = source.split("\n")  # as the parser counts them: not at form feeds
    cut: set[int] = set()
    for _, node in documented:
        if ast.get_docstring(node, clean=False) is None:
            continue
        first = node.body[0]
        starts_its_line = not lines[first.lineno - 1].encode()[: first.col_offset].strip()
        if starts_its_line and first.end_lineno is not None:
            cut.update(range(first.lineno - 1, first.end_lineno))
    return "\n".join(line for number, line in enumerate(lines) if number not in cut)


def _long_paragraphs(text: str) -> Iterator[str]:
    """The words of each paragraph, where they are many enough to be nobody else's."""
    words = (" ".join(paragraph.split()) for paragraph in _BLANK_LINES.split(text))
    return (paragraph for paragraph in words if len(paragraph) >= _SHORTEST_DOCSTRING)


def _new_paragraphs(text: str, seen: set[str]) -> list[str]:
    """Paragraphs whose words have not been seen; short ones always stay, they are headings and examples."""
    chosen: list[str] = []
    for paragraph in _BLANK_LINES.split(text.strip("\n")):
        key = " ".join(paragraph.split())
        if len(key) >= _SHORTEST_DOCSTRING:
            if key in seen:
                continue
            seen.add(key)
        if key:
            chosen.append(paragraph.rstrip())
    return chosen if any(len(paragraph) >= _SHORTEST_DOCSTRING for paragraph in chosen) else []


def _in_parts(paragraphs: list[str]) -> Iterator[str]:
    part: list[str] = []
    for paragraph in paragraphs:
        part.append(paragraph)
        if sum(map(len, part)) >= _TOPIC_PART:
            yield "\n\n".join(part) + "\n"
            part = []
    if part:
        yield "\n\n".join(part) + "\n"


def _package_folders(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    return [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []


def _distributions() -> list[tuple[str, importlib.metadata.Distribution]]:
    """Installed packages by name, each once, but for this one, whose description says what the demo finds."""
    by_name: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and name.lower() != "fastmix":
            by_name.setdefault(name.lower(), distribution)
    return sorted(by_name.items())


def _description(distribution: importlib.metadata.Distribution) -> str:
    text = distribution.read_text("METADATA") or ""
    _, _, body = text.partition("\n\n")
    return body


def _code_page(name: str) -> Document:
    rows = (
        f"0x{byte:02X}\t0x{ord(text):04X}\t{text}" for byte, text in enumerate(codecs.decode(bytes(range(256)), name, "replace"))
    )
    return Document(f"code-page-{name}", "\n".join(rows))


def _character_rows() -> list[Document]:
    """Names of all characters but those that only repeat their number, 256 to a document."""
    documents: list[Document] = []
    for start in range(0, sys.maxunicode, 256):
        rows = []
        for number in range(start, start + 256):
            text = chr(number)
            name = unicodedata.name(text, "")
            if name and not name.endswith(f"-{number:X}") and not name.startswith("HANGUL SYLLABLE"):
                rows.append(f"{number:04X};{name};{unicodedata.category(text)};{unicodedata.bidirectional(text)}")
        if len(rows) > 8:
            documents.append(Document(f"characters-{start:06X}", "\n".join(rows)))
    return documents
