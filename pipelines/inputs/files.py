"""Which files a recipe means: patterns resolved to files, and everything that can be refused before any work."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmix_data.errors import InputError
from fastmix_data.git.pointers import may_be_pointer, require_no_pointer
from fastmix_data.messages import and_more, nearest, shown
from fastmix_data.recipe.sources import SourceSection, TextSection
from fastmix_data.recipe.target import TargetFiles
from pipelines.inputs.dataset_folders import files_of_split
from pipelines.inputs.formats import READABLE, Format, format_of, list_endings, remedy_for
from pipelines.inputs.hub_datasets import DatasetInput, is_saved, resolve_dataset
from pipelines.inputs.json_layout import only_object
from pipelines.inputs.remote_files import RemoteFile, find_remote_files, is_url, without_local_scheme
from pipelines.inputs.token_files import TokenInputs
from pipelines.inputs.walk import FoundFile, find_files, split_pattern

# To open each of many objects of a store takes longer than it helps: where there are more, they are records.
_MOST_REMOTE_DESCRIPTIONS = 64
# To compare a name with all of 100,000 takes seconds.
_MOST_COMPARED = 2000


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    Attributes:
        path: absolute path or URL.
        name: what messages and the documents table call it: relative to the recipe where it lies below it.
        version: what changes when the file does, without reading it: time of modification in ns, or a store's ETag.
        real_path: the path without links; the URL.
    """

    path: str
    name: str
    format: Format
    num_bytes: int
    version: str
    real_path: str

    @property
    def is_remote(self) -> bool:
        """Whether it is read through fsspec."""
        return is_url(self.path)


@dataclass(frozen=True)
class SourceInputs:
    """Everything that one source, or one target of the recipe, is read from: text, or tokens that are there already."""

    name: str
    section: TextSection
    is_source: bool
    files: tuple[InputFile, ...] = ()
    valid_files: tuple[InputFile, ...] = ()
    dataset: DatasetInput | None = None
    warnings: tuple[str, ...] = ()
    tokens: TokenInputs | None = None
    valid_tokens: TokenInputs | None = None

    @property
    def has_mask(self) -> bool:
        """Whether only part of the tokens carry loss."""
        return self.section.has_mask or any(tokens.has_mask for tokens in (self.tokens, self.valid_tokens) if tokens)

    @property
    def where(self) -> str:
        """Key of the recipe that errors point at."""
        return f"sources.{self.name}" if self.is_source else f"target.files.{self.name}"


def resolve_inputs(
    sources: Mapping[str, SourceSection], targets: Mapping[str, TargetFiles], *, base: Path, max_partition_bytes: int
) -> dict[str, SourceInputs]:
    """List the files of every source and of every target with files of its own, by name; files of text, not those of tokens.

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
        files: tuple[InputFile, ...] = ()
        warnings: tuple[str, ...] = ()
        if target.files is not None:
            files, warnings = resolve_files(target.files, base=base, where=f"target.files.{name}.files", keys=_names(target))
        # A target is only ever measured on, so all of its files are held out.
        resolved[name] = SourceInputs(name, target, is_source=False, valid_files=files, warnings=warnings)
    return resolved


def _resolve_source(name: str, section: SourceSection, *, base: Path, max_partition_bytes: int) -> SourceInputs:
    where = f"sources.{name}"
    valid_files: tuple[InputFile, ...] = ()
    valid_warnings: tuple[str, ...] = ()
    if section.valid_files is not None:
        valid_files, valid_warnings = resolve_files(
            section.valid_files, base=base, where=f"{where}.valid_files", keys=_names(section)
        )
    files: tuple[InputFile, ...] = ()
    warnings: tuple[str, ...] = ()
    dataset: DatasetInput | None = None
    if section.dataset is not None:
        files, warnings, dataset = _resolve_dataset(section, base=base, where=where, max_partition_bytes=max_partition_bytes)
    elif section.files is not None:
        files, warnings = resolve_files(section.files, base=base, where=f"{where}.files", keys=_names(section))
    in_valid = {file.real_path for file in valid_files}
    for file in files:
        if file.real_path in in_valid:
            raise InputError(where, f"{file.name} is in files and in valid_files", "narrow one of the patterns")
    return SourceInputs(name, section, True, files, valid_files, dataset, warnings + valid_warnings)


def _resolve_dataset(
    section: SourceSection, *, base: Path, where: str, max_partition_bytes: int
) -> tuple[tuple[InputFile, ...], tuple[str, ...], DatasetInput | None]:
    """Files, warnings and dataset: a folder's files are read as files are, where their format is one of ours."""
    name, config, split = section.dataset or "", section.dataset_config, section.dataset_split
    local = base / Path(name).expanduser()
    if local.is_dir() and not is_saved(local):
        paths = files_of_split(local, name=name, config=config, split=split, where=where)
        if paths is not None:
            return (*_files_of_split(paths, base=base, where=f"{where}.dataset", keys=_names(section)), None)
    dataset = resolve_dataset(name, local=local, config=config, split=split, where=where, max_partition_bytes=max_partition_bytes)
    return (), (), dataset


def resolve_files(
    patterns: Sequence[str], *, base: Path, where: str, keys: Sequence[str] = ()
) -> tuple[tuple[InputFile, ...], tuple[str, ...]]:
    """Files that some patterns name, each once, sorted by name, and warnings about what is passed over.

    Args:
        keys: of the text; a .json file found by a pattern that is one object without them describes data and is none.
    Raises:
        InputError: see `resolve_inputs`.
    """
    by_real_path: dict[str, InputFile] = {}
    warnings: list[str] = []
    for pattern in patterns:
        written = without_local_scheme(pattern)
        candidates, num_repeated = _remote(written, where) if is_url(written) else _local(written, base, where)
        found, passed_over = _usable(candidates, pattern, where)
        exact = {file.path for file, is_exact in candidates if is_exact and isinstance(file, InputFile)}
        found, descriptions = _without_descriptions(found, exact, keys)
        if passed_over:
            listed = list_endings(passed_over)
            warnings.append(f"{where}: {len(passed_over)} files in '{pattern}' are not {READABLE} and are not read ({listed})")
        warnings += _said_of_descriptions(descriptions, where, keys)
        for file in found:
            num_repeated += by_real_path.setdefault(file.real_path, file).path != file.path
        if num_repeated:
            warnings.append(f"{where}: links in '{pattern}' lead to what is read already ({num_repeated}); it is read once")
    # By name and not by path: where the recipe lies does not decide the order of the documents.
    files = tuple(sorted(by_real_path.values(), key=lambda file: file.name))
    require_content(files, where=where, named=f"every file of '{', '.join(patterns)}'")
    return files, tuple(warnings)


def require_content(files: Iterable[InputFile], *, where: str, named: str) -> None:
    """Refuse empty files, and pointers of Git LFS in the place of content."""
    is_any = False
    for file in files:
        is_any = is_any or file.num_bytes > 0
        # A text file is one document, and an empty one among many is counted; of other formats it is a download that went wrong.
        if file.num_bytes == 0 and file.format != "txt":
            raise InputError(where, f"{file.name} is empty", "remove it or fill it")
        if may_be_pointer(file.num_bytes) and not file.is_remote:
            require_no_pointer(file.path, where=where, name=file.name)
    if not is_any:
        raise InputError(where, f"{named} is empty", "remove it or fill it")


# A file with whether the user wrote this very path; of one that is of no format of ours, only the name.
_Candidates = list[tuple[InputFile | str, bool]]


def _remote(pattern: str, where: str) -> tuple[_Candidates, int]:
    return [(_remote_file(file), file.is_exact) for file in find_remote_files(pattern, where=where)], 0


def _local(pattern: str, base: Path, where: str) -> tuple[_Candidates, int]:
    """Each real file once, and how many times more the pattern has one."""
    found = find_files(pattern, base=str(base), where=where)
    if not found.files:
        _explain_nothing(pattern, base, where)
    files, num_repeated = found.each_once()
    start = str(base).rstrip("/") + "/"
    candidates: _Candidates = [(_local_file(file, start), file.is_exact) for file in files]
    for file, _ in candidates:
        if isinstance(file, InputFile) and not os.access(file.path, os.R_OK):
            raise InputError(where, f"{file.name} cannot be read", "its permissions forbid it")
    return candidates, num_repeated


def _usable(candidates: _Candidates, pattern: str, where: str) -> tuple[list[InputFile], list[str]]:
    """Files of our formats, and the names of others.

    What the user wrote is meant as it stands, so that its odd ending is refused; what a pattern or a folder has beside files of ours is
    passed over and counted.
    """
    files = [file for file, _ in candidates if isinstance(file, InputFile)]
    others = [(file, is_exact) for file, is_exact in candidates if isinstance(file, str)]
    for name, is_exact in others:
        if is_exact:
            raise InputError(where, f"{name} is of no format fastmix reads", remedy_for(name.split("?")[0]))
    names = [name for name, _ in others]
    if not files:
        remedy = remedy_for(names[0]) if len(names) == 1 else f"there are {list_endings(names)} there; {remedy_for(names[0])}"
        raise InputError(where, f"'{pattern}' has no {READABLE} file", remedy)
    return files, names


def _local_file(file: FoundFile, start: str) -> InputFile | str:
    path = os.path.normpath(file.path) if "/.." not in file.path else file.path
    name = shown(os.path.normpath(file.path[len(start) :]) if file.path.startswith(start) else path)
    kind = format_of(name)
    return name if kind is None else InputFile(file.path, name, kind, file.num_bytes, str(file.mtime_ns), file.real_path)


def _remote_file(file: RemoteFile) -> InputFile | str:
    kind = format_of(file.url.split("?")[0])
    return file.url if kind is None else InputFile(file.url, file.url, kind, file.num_bytes, file.version, file.url)


def _without_descriptions(
    files: list[InputFile], exact: set[str], keys: Sequence[str]
) -> tuple[list[InputFile], list[InputFile]]:
    """Files of records, and .json files beside them that only describe them: one object that has none of the text."""
    asked = [file for file in files if file.format == "json" and file.path not in exact and keys]
    if len(asked) > _MOST_REMOTE_DESCRIPTIONS and asked[0].is_remote:
        return files, []
    descriptions = [file for file in asked if _is_description(file, keys)]
    paths = {file.path for file in descriptions}
    records = [file for file in files if file.path not in paths]
    # Where there is nothing else, they are what the user means, and the key is wrong.
    return (records, descriptions) if records else (files, [])


def _names(section: TextSection) -> tuple[str, ...]:
    """Keys of a record, one of which at least a record of the section has."""
    return tuple(dict.fromkeys(name for key in section.all_keys for name in (key.written, key.top)))


def _is_description(file: InputFile, keys: Sequence[str]) -> bool:
    record = only_object(file.path, file.num_bytes)
    return record is not None and not any(key in record for key in keys)


def _said_of_descriptions(files: Sequence[InputFile], where: str, keys: Sequence[str]) -> list[str]:
    if not files:
        return []
    listed, without = and_more([file.name for file in files]), " and ".join(keys)
    return [f"{where}: not read: {listed}, of one JSON object without {without}, which describes data and is none"]


def _files_of_split(
    paths: Sequence[str], *, base: Path, where: str, keys: Sequence[str]
) -> tuple[tuple[InputFile, ...], tuple[str, ...]]:
    """Files that the `datasets` library counts to a split of a folder, and warnings."""
    start = str(base).rstrip("/") + "/"
    files: list[InputFile] = []
    for path in paths:
        status = os.stat(path)
        file = _local_file(FoundFile(path, os.path.realpath(path), False, status.st_size, status.st_mtime_ns, False), start)
        assert isinstance(file, InputFile)
        files.append(file)
    files, descriptions = _without_descriptions(files, set(), keys)
    require_content(files, where=where, named="every file of the split")
    return tuple(files), tuple(_said_of_descriptions(descriptions, where, keys))


def _explain_nothing(pattern: str, base: Path, where: str) -> None:
    """Say that nothing matches, and what is there instead: the nearest name, or the kinds of files of the nearest folder.

    Raises:
        InputError: always.
    """
    root, parts = split_pattern(pattern, str(base))
    folder, rest = root, list(parts)
    # As far as the user's own words name folders that exist.
    while rest and os.path.isdir(inner := os.path.join(folder, rest[0])):
        folder, rest = inner, rest[1:]
    entries = [shown(entry) for entry in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    if not rest:
        raise InputError(where, f"the folder '{pattern}' has no {READABLE} file", _what_is_there(entries))
    is_glob = any(map(glob.has_magic, parts))
    problem = f"no file matches '{pattern}'" if is_glob else f"there is no file '{pattern}'"
    if len(rest) > 1 and not glob.has_magic(rest[0]):
        missing = shown(os.path.join(folder, rest[0]))
        raise InputError(where, problem, f"there is no folder {missing}; paths are relative to the recipe")
    likely = nearest(rest[0].replace("*", ""), entries[:_MOST_COMPARED], cutoff=0.55)
    raise InputError(where, problem, f"the nearest there is {likely}" if likely else _what_is_there(entries))


def _what_is_there(entries: Sequence[str]) -> str:
    names = [entry for entry in entries if not entry.startswith(".")]
    if not names:
        return "it has only hidden files, which are not read" if entries else "the folder is empty"
    return f"there {'are' if len(names) > 1 else 'is'} {list_endings(names)} there"
