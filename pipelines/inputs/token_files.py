"""Which files of tokens a recipe means, and what each format says of them; everything that can be refused without a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastmix_data.errors import InputError
from fastmix_data.foreign.datatrove import datatrove_file
from fastmix_data.foreign.foreign_file import ForeignFile
from fastmix_data.foreign.mds import INDEX, MdsTokens, mds_folder
from fastmix_data.foreign.megatron import megatron_file
from fastmix_data.foreign.olmo import olmo_file
from fastmix_data.foreign.storage import BORROWED, is_foreign
from fastmix_data.git.pointers import may_be_pointer, require_no_pointer
from fastmix_data.messages import nearest
from fastmix_data.recipe.tokens import TokensSection
from fastmix_data.shards.catalog import CatalogInfo, ShardRow, load_catalog
from fastmix_data.workdir import Workdir
from pipelines.inputs.walk import FoundFile, find_files

_WRITTEN = {"megatron": ".bin", "datatrove": ".ds"}


@dataclass(frozen=True)
class TokenInputs:
    """The tokens of one source's split, or of both.

    Attributes:
        where: key of the recipe that errors point at.
        files: of a foreign format, in the order of their names.
        rows: of another workdir's catalog, whose `info` says what they were made with; paths as this workdir's catalog has them.
        root: this workdir, that paths in the catalog start from.
        is_absolute: whether the recipe names them by absolute paths, and the catalog should.
    """

    where: str
    files: tuple[ForeignFile, ...]
    rows: tuple[ShardRow, ...]
    info: CatalogInfo | None
    catalog: Path | None
    root: Path
    is_absolute: bool

    @property
    def has_mask(self) -> bool:
        """Whether only part of the tokens carry loss."""
        return any(file.mask is not None for file in self.files) or any(row.has_mask for row in self.rows)

    @property
    def watched(self) -> Iterator[tuple[Path, str]]:
        """Every file that is not to change, with its name in messages."""
        for file in self.files:
            yield file.path, file.name
            yield from ((path, f"{file.name} ({path.name})") for path in (*file.beside, *([file.mask] if file.mask else [])))
        if self.catalog is not None:
            yield self.catalog, str(self.catalog)

    def path_in_catalog(self, path: Path) -> str:
        """A file's path as the catalog has it."""
        # Of the folder without links: where the workdir is reached by one, `..` leads out of what it links to.
        real = path.parent.resolve() / path.name
        return str(real) if self.is_absolute else os.path.relpath(real, self.root.resolve())


def resolve_tokens(
    section: TokensSection, *, name: str, where: str, base: Path, root: Path, dtype: str | None, block_tokens: int
) -> TokenInputs:
    """Find the files, and check each against what its own format says of it.

    Args:
        name: of the source here.
        base: folder that relative patterns start from.
        root: this workdir.
        dtype: smallest type of the tokenizer's vocabulary; None if that is not known yet.
        block_tokens: of this workdir.

    Raises:
        InputError: a pattern matches nothing, a file is not of its format, or does not fit what lies beside it.
    """
    is_absolute = all(pattern.startswith(("/", "~")) for pattern in section.patterns)
    where = f"{where}.{section.format}"
    found = TokenInputs(where, (), (), None, None, root, is_absolute)
    if section.format == "fastmix":
        return _of_workdir(section, found, name=name, base=base, block_tokens=block_tokens)
    files = tuple(_files(section, base=base, where=where, dtype=dtype))
    if len({file.mask is None for file in files}) > 1:
        without = next(file.name for file in files if file.mask is None)
        raise InputError(where, f"{without} has no mask, and others have one", "make two sources of them")
    if len({(file.dtype, file.storage) for file in files}) > 1:
        other = next(file for file in files if (file.dtype, file.storage) != (files[0].dtype, files[0].storage))
        problem = f"{other.name} has tokens of another type than {files[0].name}"
        raise InputError(where, problem, "make two sources of them")
    num_tokens = sum(file.num_tokens for file in files)
    if num_tokens <= block_tokens:
        problem = f"has {num_tokens} tokens, less than one block of {block_tokens} and its last label"
        raise InputError(where, problem, "give it more, or lower shards.block_tokens")
    return replace(found, files=files)


def _files(section: TokensSection, *, base: Path, where: str, dtype: str | None) -> Iterator[ForeignFile]:
    if section.format == "mds":
        for path, name in _found([f"{pattern.rstrip('/')}/{INDEX}" for pattern in section.patterns], base=base, where=where):
            yield from _of_mds(section, path.parent, name=str(Path(name).parent), where=where)
        return
    ending = _WRITTEN.get(section.format, "")
    patterns = [_with_ending(pattern, ending, base) if section.format == "megatron" else pattern for pattern in section.patterns]
    files = [found for found in _found(patterns, base=base, where=where) if not ending or found[0].suffix == ending]
    if not files:
        raise InputError(where, f"no {ending} file matches '{', '.join(section.patterns)}'", "see what the folder holds")
    if section.format == "megatron":
        yield from (megatron_file(path, name=name, where=where) for path, name in files)
    elif section.format == "datatrove":
        yield from (datatrove_file(path, name=name, where=where, dtype=section.dtype) for path, name in files)
    else:
        yield from _of_olmo(section, files, base=base, where=where, dtype=section.dtype or dtype)


def _with_ending(pattern: str, ending: str, base: Path) -> str:
    """A prefix of Megatron's names two files; whoever writes one of them means both."""
    prefix = pattern.removesuffix(".idx").removesuffix(ending)
    return f"{prefix}{ending}" if not (base / Path(pattern).expanduser()).is_dir() else f"{pattern.rstrip('/')}/*{ending}"


def _of_olmo(
    section: TokensSection, files: Sequence[tuple[Path, str]], *, base: Path, where: str, dtype: str | None
) -> Iterator[ForeignFile]:
    if dtype is None:
        problem = "nothing says the type of a token, as the vocabulary of tokenizer.hf is not known before it is fetched"
        raise InputError(where, problem, "give dtype: uint16 or uint32")
    masks: Sequence[Path | None] = [None] * len(files)
    if section.masks is not None:
        masks = [path for path, _ in _found(section.masks, base=base, where=f"{where.rpartition('.')[0]}.masks")]
        taken = set(masks)
        files = [(path, name) for path, name in files if path not in taken]
        if len(masks) != len(files):
            raise InputError(
                where, f"there are {len(files)} token files and {len(masks)} masks", "give one for each, in the order of names"
            )
    # What lies beside tokens is no token file, where a folder or `*` names them all.
    tokens = [(path, name) for path, name in files if not path.name.endswith(".csv.gz")]
    for (path, name), mask in zip(tokens, masks, strict=True):
        yield olmo_file(path, name=name, where=where, dtype=dtype, mask=mask)


def _of_mds(section: TokensSection, folder: Path, *, name: str, where: str) -> Iterator[ForeignFile]:
    found = mds_folder(folder, name=name, where=where, column=section.column, dtype=section.dtype)
    # Gathered tokens are copied in memory anyway, so they can be made narrower there; signed ones are of unsigned values.
    dtype = "<u2" if found.storage.endswith(("int16", "int8")) else "<u4"
    for path, _ in found.files:
        num_tokens = MdsTokens(path, found.storage).num_tokens
        yield ForeignFile(path, f"{name}/{path.name}", found.storage, dtype, num_tokens, beside=(folder / INDEX,))


def _of_workdir(section: TokensSection, found: TokenInputs, *, name: str, base: Path, block_tokens: int) -> TokenInputs:
    root = base / Path(section.fastmix or "").expanduser()
    path = Workdir(root).catalog
    if not path.is_file():
        raise InputError(
            found.where, f"'{section.fastmix}' has no catalog, so it is no workdir", "name one that `fastmix preprocess` made"
        )
    catalog, wanted = load_catalog(path), section.source or name
    names = (*catalog.sources, *catalog.targets_from_files)
    if wanted not in names:
        likely = nearest(wanted, names)
        remedy = f"did you mean {likely}?" if likely else f"it has {', '.join(names)}"
        raise InputError(found.where, f"'{section.fastmix}' has no source {wanted!r}", f"name one with source; {remedy}")
    if catalog.info.sample is not None and wanted in catalog.info.sample.sources:
        problem = f"'{section.fastmix}' holds a sample of {wanted}, whose shards the whole will replace"
        raise InputError(found.where, problem, "run `fastmix preprocess --all` with its recipe first")
    if (other := catalog.info.block_tokens) != block_tokens:
        problem = f"its shards have blocks of {other} tokens, here they have {block_tokens}"
        raise InputError(found.where, problem, f"give shards: {{block_tokens: {other}}}")

    def here(row: ShardRow) -> ShardRow:
        mask_path = found.path_in_catalog(root / row.mask_path) if row.mask_path else ""
        storage = row.storage if is_foreign(row.storage) else BORROWED
        return replace(row, source=name, path=found.path_in_catalog(root / row.path), mask_path=mask_path, storage=storage)

    theirs = [row for row in catalog.rows if row.source == wanted]
    for shard in {row.path for row in theirs}:
        if not (root / shard).is_file():
            raise InputError(found.where, f"its shard {shard} is not there", "restore it, or run its `fastmix preprocess` again")
    rows = tuple(map(here, theirs))
    return replace(found, rows=rows, info=catalog.info, catalog=path)


def _found(patterns: Iterable[str], *, base: Path, where: str) -> list[tuple[Path, str]]:
    """Files that some patterns name, each once, in the order of their names."""
    by_real_path: dict[str, tuple[Path, str]] = {}
    for pattern in patterns:
        found = find_files(pattern, base=str(base), where=where)
        if not found.files:
            raise InputError(where, f"no file matches '{pattern}'", _remedy(pattern, base))
        for file in found.each_once()[0]:
            by_real_path.setdefault(file.real_path, _named(file, base))
    files = sorted(by_real_path.values(), key=lambda found: found[1])
    for path, name in files:
        if may_be_pointer(path.stat().st_size):
            require_no_pointer(path, where=where, name=name)
    return files


def _named(file: FoundFile, base: Path) -> tuple[Path, str]:
    path = Path(os.path.normpath(file.path))
    return path, str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _remedy(pattern: str, base: Path) -> str:
    folder = (base / Path(pattern).expanduser()).parent
    if not folder.is_dir():
        return f"there is no folder {folder}; paths are relative to the recipe"
    likely = nearest(Path(pattern).name, sorted(entry.name for entry in folder.iterdir())[:2000])
    return f"the nearest there is {likely}" if likely else "see what the folder holds"
