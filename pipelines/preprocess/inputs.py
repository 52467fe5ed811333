"""Which files a recipe means: patterns resolved to files, and everything that can be refused before any work."""

from __future__ import annotations

import difflib
import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fastmix_data.errors import InputError
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.sources import SourceSection, TextSection
from pipelines.preprocess.hub_datasets import DatasetInput, resolve_dataset

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt"]
_FORMATS: tuple[Format, ...] = get_args(Format)
_READABLE = ", ".join(f".{name}" for name in _FORMATS)


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    Attributes:
        path: absolute path or URL.
        name: what messages and the documents table call it: relative to the recipe where it lies below it.
        version: what changes when the file does, without reading it: time of modification in ns, or a store's ETag.
    """

    path: str
    name: str
    format: Format
    num_bytes: int
    version: str

    @property
    def is_remote(self) -> bool:
        """Whether it is read through fsspec."""
        return is_url(self.path)


@dataclass(frozen=True)
class SourceInputs:
    """Everything that one source, or one target of the recipe, is read from."""

    name: str
    section: TextSection
    is_source: bool
    files: tuple[InputFile, ...] = ()
    valid_files: tuple[InputFile, ...] = ()
    dataset: DatasetInput | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def where(self) -> str:
        """Key of the recipe that errors point at."""
        return f"sources.{self.name}" if self.is_source else f"target.files.{self.name}"


def is_url(path: str) -> bool:
    """Whether a pattern of the recipe is an fsspec URL."""
    return "://" in path


def resolve_inputs(recipe: Recipe) -> dict[str, SourceInputs]:
    """List the files of every source and every target of the recipe, by name.

    Raises:
        InputError: a file is missing, empty or of no known format, a pattern matches nothing, or a file is both in files and in
            valid_files.
    """
    resolved: dict[str, SourceInputs] = {}
    for name, section in recipe.sources.items():
        resolved[name] = _resolve_source(recipe, name, section)
    for name, target in recipe.target.files.items():
        files, warnings = resolve_files(target.files, recipe=recipe, where=f"target.files.{name}.files")
        resolved[name] = SourceInputs(name, target, False, valid_files=files, warnings=warnings)
    return resolved


def _resolve_source(recipe: Recipe, name: str, section: SourceSection) -> SourceInputs:
    where = f"sources.{name}"
    valid_files: tuple[InputFile, ...] = ()
    valid_warnings: tuple[str, ...] = ()
    if section.valid_files is not None:
        valid_files, valid_warnings = resolve_files(section.valid_files, recipe=recipe, where=f"{where}.valid_files")
    if section.dataset is not None:
        dataset = resolve_dataset(
            section.dataset,
            local=recipe.resolve(section.dataset),
            config=section.dataset_config,
            split=section.dataset_split,
            where=where,
            max_partition_bytes=recipe.shards.max_partition_bytes,
        )
        return SourceInputs(name, section, True, (), valid_files, dataset, valid_warnings)
    assert section.files is not None
    files, warnings = resolve_files(section.files, recipe=recipe, where=f"{where}.files")
    in_both = {file.path for file in files} & {file.path for file in valid_files}
    if in_both:
        shared = next(file.name for file in files if file.path in in_both)
        raise InputError(f"{where}: {shared} is in files and in valid_files; narrow one of the patterns")
    return SourceInputs(name, section, True, files, valid_files, None, warnings + valid_warnings)


def resolve_files(patterns: Sequence[str], *, recipe: Recipe, where: str) -> tuple[tuple[InputFile, ...], tuple[str, ...]]:
    """Files that some patterns name, each once, sorted by name, and warnings about files of a folder that are passed over.

    Raises:
        InputError: see `resolve_inputs`.
    """
    found: dict[str, InputFile] = {}
    warnings: list[str] = []
    for pattern in patterns:
        matched, passed_over = _match_remote(pattern, where) if is_url(pattern) else _match_local(pattern, recipe, where)
        if passed_over:
            warnings.append(f"{where}: {passed_over} files in '{pattern}' are not {_READABLE} and are not read")
        found |= {file.path: file for file in matched}
    files = tuple(sorted(found.values(), key=lambda file: file.name))
    documents = [file for file in files if file.format != "txt"]
    empty = next((file for file in documents if file.num_bytes == 0), None)
    if empty is not None or not any(file.num_bytes for file in files):
        name = empty.name if empty is not None else f"every file of '{', '.join(patterns)}'"
        raise InputError(f"{where}: {name} is empty; remove it or fill it")
    return files, tuple(warnings)


def format_of(name: str) -> Format | None:
    """The format that a file's name ends with; None if it is none of ours."""
    return next((known for known in _FORMATS if name.endswith(f".{known}")), None)


def _match_local(pattern: str, recipe: Recipe, where: str) -> tuple[list[InputFile], int]:
    path = str(recipe.resolve(pattern))
    if Path(path).exists():
        matches = [path]
    elif glob.has_magic(pattern):
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (the pattern is absolute)
    else:
        matches = []
    if not matches:
        raise InputError(f"{where}: {_explain_no_match(pattern, Path(path))}")
    files: list[InputFile] = []
    passed_over = 0
    for match in matches:
        if Path(match).is_dir():
            inside = sorted(str(entry) for entry in Path(match).rglob("*") if entry.is_file())
            readable = [entry for entry in inside if format_of(entry) is not None]
            passed_over += len(inside) - len(readable)
            if not readable and matches == [match]:
                raise InputError(f"{where}: the folder '{pattern}' has no {_READABLE} file{_what_is_there(inside)}")
            files += [_local_file(entry, recipe, where) for entry in readable]
        else:
            files.append(_local_file(match, recipe, where))
    return files, passed_over


def _local_file(path: str, recipe: Recipe, where: str) -> InputFile:
    name = os.path.relpath(path, recipe.base) if Path(path).is_relative_to(recipe.base) else path
    status = Path(path).stat()
    if not os.access(path, os.R_OK):
        raise InputError(f"{where}: {name} cannot be read; its permissions forbid it")
    return InputFile(str(Path(path)), name, _require_format(name, where), status.st_size, str(status.st_mtime_ns))


def _require_format(name: str, where: str) -> Format:
    known = format_of(name)
    if known is None:
        raise InputError(f"{where}: {name} is of no format fastmix reads; use {_READABLE} or a {{dataset: ...}} source")
    return known


def _explain_no_match(pattern: str, path: Path) -> str:
    """What is there instead: the nearest names, or the kinds of files of the nearest folder."""
    folder = path.parent
    while not folder.is_dir() or glob.has_magic(str(folder)):
        folder = folder.parent
    is_glob = glob.has_magic(pattern)
    problem = f"no file matches '{pattern}'" if is_glob else f"there is no file '{pattern}'"
    if folder != path.parent and not glob.has_magic(str(path.parent)):
        return f"{problem}; there is no folder {path.parent}; paths are relative to the recipe"
    names = sorted(entry.name for entry in folder.iterdir())
    nearest = difflib.get_close_matches(path.name.replace("*", ""), names, n=3, cutoff=0.55)
    if nearest:
        return f"{problem}; the nearest there {'are' if len(nearest) > 1 else 'is'} {', '.join(nearest)}"
    return f"{problem}{_what_is_there(names)}"


def _what_is_there(names: Iterable[str]) -> str:
    endings = Counter("".join(Path(name).suffixes[-2:]) or "no extension" for name in names)
    if not endings:
        return "; the folder is empty"
    listed = ", ".join(f"{count} ending in {ending}" for ending, count in endings.most_common(3))
    total = sum(endings.values())
    return f"; there {'are' if total > 1 else 'is'} {listed} there"


def _match_remote(pattern: str, where: str) -> tuple[list[InputFile], int]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        if glob.has_magic(path):
            matches = sorted(filesystem.glob(path))
        elif filesystem.isdir(path) and not pattern.startswith("http"):
            matches = sorted(filesystem.find(path))
        else:
            matches = [path] if filesystem.exists(path) else []
        infos = [(filesystem.unstrip_protocol(match), filesystem.info(match)) for match in matches]
    except ImportError as error:
        raise InputError(f"{where}: '{pattern}' needs a package that is not installed ({error})") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{where}: '{pattern}' cannot be listed ({error or type(error).__name__}); check address and access"
        ) from error
    if not infos:
        raise InputError(f"{where}: nothing is at '{pattern}'; check the address")
    usable = [(url, info) for url, info in infos if len(infos) == 1 or format_of(url) is not None]
    return [_remote_file(url, info, where) for url, info in usable], len(infos) - len(usable)


def _remote_file(url: str, info: dict[str, Any], where: str) -> InputFile:
    if info.get("size") is None:
        raise InputError(f"{where}: the server does not say how large {url} is; download it first")
    version = next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), "")
    return InputFile(url, url, _require_format(url.split("?")[0], where), int(info["size"]), version)
