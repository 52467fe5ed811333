"""Which files a recipe means: patterns resolved to files, and everything that can be refused before any work."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fastmix_data.errors import InputError
from fastmix_data.messages import first_line, nearest
from fastmix_data.recipe.sources import SourceSection, TextSection
from fastmix_data.recipe.target import TargetFiles
from pipelines.inputs.hub_datasets import DatasetInput, resolve_dataset

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt"]
_FORMATS: tuple[Format, ...] = get_args(Format)
READABLE = ", ".join(f".{name}" for name in _FORMATS)


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
    warnings: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Key of the recipe that errors point at."""
        return f"sources.{self.name}" if self.is_source else f"target.files.{self.name}"


def is_url(path: str) -> bool:
    """Whether a pattern of the recipe is an fsspec URL."""
    return "://" in path


def resolve_inputs(
    sources: Mapping[str, SourceSection], targets: Mapping[str, TargetFiles], *, base: Path, max_partition_bytes: int
) -> dict[str, SourceInputs]:
    """List the files of every source and of every target with files of its own, by name.

    Args:
        base: folder that relative patterns start from.
        max_partition_bytes: size of the parts that a saved dataset is cut into.
    Raises:
        InputError: a file is missing, empty or of no known format, a pattern matches nothing, or a file is both in files and in
            valid_files.
    """
    resolved = {
        name: _resolve_source(name, section, base=base, max_partition_bytes=max_partition_bytes)
        for name, section in sources.items()
    }
    for name, target in targets.items():
        files, warnings = resolve_files(target.files, base=base, where=f"target.files.{name}.files")
        # A target is only ever measured on, so all of its files are held out.
        resolved[name] = SourceInputs(name, target, is_source=False, valid_files=files, warnings=warnings)
    return resolved


def _resolve_source(name: str, section: SourceSection, *, base: Path, max_partition_bytes: int) -> SourceInputs:
    where = f"sources.{name}"
    valid_files: tuple[InputFile, ...] = ()
    valid_warnings: tuple[str, ...] = ()
    if section.valid_files is not None:
        valid_files, valid_warnings = resolve_files(section.valid_files, base=base, where=f"{where}.valid_files")
    if section.dataset is not None:
        dataset = resolve_dataset(
            section.dataset,
            local=base / Path(section.dataset).expanduser(),
            config=section.dataset_config,
            split=section.dataset_split,
            where=where,
            max_partition_bytes=max_partition_bytes,
        )
        return SourceInputs(name, section, True, (), valid_files, dataset, valid_warnings)
    assert section.files is not None
    files, warnings = resolve_files(section.files, base=base, where=f"{where}.files")
    in_valid = {file.path for file in valid_files}
    for file in files:
        if file.path in in_valid:
            raise InputError(where, f"{file.name} is in files and in valid_files", "narrow one of the patterns")
    return SourceInputs(name, section, True, files, valid_files, None, warnings + valid_warnings)


def resolve_files(patterns: Sequence[str], *, base: Path, where: str) -> tuple[tuple[InputFile, ...], tuple[str, ...]]:
    """Files that some patterns name, each once, sorted by name, and warnings about files of a folder that are passed over.

    Raises:
        InputError: see `resolve_inputs`.
    """
    by_path: dict[str, InputFile] = {}
    warnings: list[str] = []
    for pattern in patterns:
        matched, num_passed_over = _match_remote(pattern, where) if is_url(pattern) else _match_local(pattern, base, where)
        if num_passed_over:
            warnings.append(f"{where}: {num_passed_over} files in '{pattern}' are not {READABLE} and are not read")
        by_path |= {file.path: file for file in matched}
    # By name and not by path: where the recipe lies does not decide the order of the documents.
    files = tuple(sorted(by_path.values(), key=lambda file: file.name))
    # A text file is one document, and an empty one among many is counted; of other formats it is a download that went wrong.
    empty = next((file for file in files if file.num_bytes == 0 and file.format != "txt"), None)
    if empty is not None or not any(file.num_bytes for file in files):
        name = empty.name if empty is not None else f"every file of '{', '.join(patterns)}'"
        raise InputError(where, f"{name} is empty", "remove it or fill it")
    return files, tuple(warnings)


def format_of(name: str) -> Format | None:
    """The format that a file's name ends with; None if it is none of ours."""
    return next((known for known in _FORMATS if name.endswith(f".{known}")), None)


def _match_local(pattern: str, base: Path, where: str) -> tuple[list[InputFile], int]:
    path = base / Path(pattern).expanduser()
    # A file whose name looks like a pattern is taken as it is.
    if path.exists():
        matches = [path]
    elif glob.has_magic(pattern):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 (the pattern is absolute)
    else:
        matches = []
    if not matches:
        raise InputError(where, *_explain_no_match(pattern, path))
    files: list[InputFile] = []
    num_passed_over = 0
    for match in matches:
        if match.is_dir():
            inside = sorted(str(entry) for entry in match.rglob("*") if entry.is_file())
            readable = [entry for entry in inside if format_of(entry) is not None]
            num_passed_over += len(inside) - len(readable)
            if not readable and matches == [match]:
                raise InputError(where, f"the folder '{pattern}' has no {READABLE} file", _what_is_there(inside))
            files += [_local_file(Path(entry), base, where) for entry in readable]
        else:
            files.append(_local_file(match, base, where))
    return files, num_passed_over


def _local_file(path: Path, base: Path, where: str) -> InputFile:
    name = os.path.relpath(path, base) if path.is_relative_to(base) else str(path)
    status = path.stat()
    if not os.access(path, os.R_OK):
        raise InputError(where, f"{name} cannot be read", "its permissions forbid it")
    return InputFile(str(path), name, _require_format(name, where), status.st_size, str(status.st_mtime_ns))


def _require_format(name: str, where: str) -> Format:
    known = format_of(name)
    if known is None:
        raise InputError(where, f"{name} is of no format fastmix reads", f"use {READABLE} or a {{dataset: ...}} source")
    return known


def _explain_no_match(pattern: str, path: Path) -> tuple[str, str]:
    """That nothing matches, and what is there instead: the nearest name, or the kinds of files of the nearest folder."""
    is_glob = glob.has_magic(pattern)
    problem = f"no file matches '{pattern}'" if is_glob else f"there is no file '{pattern}'"
    folder = path.parent
    while not folder.is_dir() or glob.has_magic(str(folder)):
        folder = folder.parent
    if folder != path.parent and not glob.has_magic(str(path.parent)):
        return problem, f"there is no folder {path.parent}; paths are relative to the recipe"
    names = sorted(entry.name for entry in folder.iterdir())
    likely = nearest(path.name.replace("*", ""), names, cutoff=0.55)
    return problem, f"the nearest there is {likely}" if likely else _what_is_there(names)


def _what_is_there(names: Iterable[str]) -> str:
    endings = Counter("".join(Path(name).suffixes[-2:]) or "no extension" for name in names)
    if not endings:
        return "the folder is empty"
    listed = ", ".join(f"{count} ending in {ending}" for ending, count in endings.most_common(3))
    return f"there {'are' if endings.total() > 1 else 'is'} {listed} there"


def _match_remote(pattern: str, where: str) -> tuple[list[InputFile], int]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        if glob.has_magic(path):
            matches = sorted(filesystem.glob(path))
        # Over HTTP every page is a "folder" of the links on it.
        elif not pattern.startswith("http") and filesystem.isdir(path):
            matches = sorted(filesystem.find(path))
        else:
            matches = [path] if filesystem.exists(path) else []
        infos = [(filesystem.unstrip_protocol(match), filesystem.info(match)) for match in matches]
    except ImportError as error:
        raise InputError(where, f"'{pattern}' needs a package that is not installed ({error})", "install it") from error
    except (OSError, ValueError, TypeError) as error:
        problem = f"'{pattern}' cannot be listed ({first_line(error)})"
        raise InputError(where, problem, "check address and access") from error
    if not infos:
        raise InputError(where, f"nothing is at '{pattern}'", "check the address")
    # A single address is meant as it stands, so that its odd ending is refused; in a folder, what we cannot read is passed over.
    usable = [(url, info) for url, info in infos if len(infos) == 1 or format_of(url) is not None]
    return [_remote_file(url, info, where) for url, info in usable], len(infos) - len(usable)


def _remote_file(url: str, info: Mapping[str, Any], where: str) -> InputFile:
    if info.get("size") is None:
        raise InputError(where, f"the server does not say how large {url} is", "download it first")
    # Each store has its own word for a version; without any, only a change of size is noticed.
    version = next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), "")
    return InputFile(url, url, _require_format(url.split("?")[0], where), int(info["size"]), version)
