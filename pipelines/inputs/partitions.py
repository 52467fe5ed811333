"""Cutting the input into partitions: units of work with a fixed identity, whatever the number of workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastmix_data.errors import InputError
from pipelines.inputs.columns import needed_columns
from pipelines.inputs.files import InputFile, SourceInputs
from pipelines.inputs.hub_datasets import DatasetInput
from pipelines.inputs.json_layout import is_cut_at_lines
from pipelines.inputs.parquet_ranges import look_into
from pipelines.inputs.token_files import TokenInputs

Origin = Literal["train", "valid", "both"]
NUM_WAVES = 3
# Whatever is held out anywhere must be known before a document is put into a training split. Files that are held out as a whole
# come first. Sources split by hash are next: the hash holds a document out wherever it occurs among them, so they need not know of
# one another. Training files of sources with held-out files of their own follow no hash, so they come last.
WAVE_OF_ORIGIN: dict[Origin, int] = {"valid": 0, "both": 1, "train": 2}
# A partition begins shards of its own and pads their ends to a block, so small files share one: a file is small below this part of
# a partition, and a group is as large. Not a whole partition, so that a corpus of middling files still keeps many workers busy.
_GROUPS_OF_A_PARTITION = 8
# A receipt names every file, so a group of tiny ones is bounded by their number too.
_MAX_FILES_OF_A_PARTITION = 4096
# Of a source of 100,000 files, the first ones tell whether its columns are right; all are checked again when they are read.
_SMALL_TABLES_LOOKED_INTO = 64


@dataclass(frozen=True)
class Partition:
    """One unit of work.

    Attributes:
        origin: `train` and `valid` documents are all of that split; `both` are split by hash of their text.
        num_bytes: size of its input.
        files: small files of whatever formats, whole; or one file.
        start, stop: range of one file: bytes of plain JSON Lines, row groups of .parquet. Equal: all of every file.
            Shard of a dataset: start.
        hash_start, hash_stop: bytes of the file whose content identifies the range.
        tokens: that are there already, of all files of the source; nothing is encoded, so they have no size.
        where: key of the recipe that errors point at.
        number: from 0 within (source, origin).
    """

    source: str
    origin: Origin
    files: tuple[InputFile, ...]
    num_bytes: int
    start: int = 0
    stop: int = 0
    hash_start: int = 0
    hash_stop: int = 0
    dataset: DatasetInput | None = None
    where: str = ""
    number: int = 0
    tokens: TokenInputs | None = None

    @property
    def label(self) -> str:
        """Name of its receipt and of its documents table."""
        return f"{self.source}-{self.origin}-{self.number:06d}"

    @property
    def wave(self) -> int:
        """When it is done: after all partitions of lower waves, whose held-out documents it has to know."""
        return WAVE_OF_ORIGIN[self.origin]

    @property
    def is_part_of_file(self) -> bool:
        """Whether it covers a range of its one file."""
        return self.stop > self.start and self.dataset is None


def plan_partitions(inputs: SourceInputs, *, max_partition_bytes: int) -> list[Partition]:
    """All partitions of a source, in the order of its files.

    Raises:
        InputError: a Parquet file that is looked into is damaged or lacks a text column, or the section names keys of files that have
            none.
    """
    if inputs.tokens is not None or inputs.valid_tokens is not None:
        return list(_plan_imports(inputs))
    _require_keys(inputs)
    training: Origin = "train" if inputs.valid_files else "both"
    planned = [*_plan_files(inputs, inputs.files, training, max_partition_bytes)]
    if inputs.dataset is not None:
        planned += _plan_dataset(inputs, inputs.dataset, training)
    planned += _plan_files(inputs, inputs.valid_files, "valid", max_partition_bytes)
    numbers: dict[Origin, Iterator[int]] = {origin: itertools.count() for origin in WAVE_OF_ORIGIN}
    return [replace(partition, where=inputs.where, number=next(numbers[partition.origin])) for partition in planned]


def _plan_imports(inputs: SourceInputs) -> Iterator[Partition]:
    """One unit for all files of a split: they are described, not read, and what is held out of them is spread over all of them."""
    if inputs.tokens is not None:
        origin: Origin = "both" if inputs.valid_tokens is None else "train"
        yield Partition(inputs.name, origin, (), 0, where=inputs.where, tokens=inputs.tokens)
    if inputs.valid_tokens is not None:
        yield Partition(inputs.name, "valid", (), 0, where=inputs.where, tokens=inputs.valid_tokens)


def _require_keys(inputs: SourceInputs) -> None:
    """A text file is a document as a whole."""
    section, files = inputs.section, (*inputs.files, *inputs.valid_files)
    texts = [file for file in files if file.format == "txt"]
    # In a folder of several formats `text` is the key of those that have some; a text file can be no pair in any company.
    given = [name for name in ("text", "prompt", "messages") if getattr(section, name) is not None]
    if texts and given and (section.has_mask or (len(texts) == len(files) and inputs.dataset is None)):
        problem = f"{texts[0].name} is text without keys, so there is no {section.text_keys[0]!r} in it"
        raise InputError(f"{inputs.where}.{given[0]}", problem, "remove the key, or give files of records (.jsonl, .parquet)")


def _plan_dataset(inputs: SourceInputs, dataset: DatasetInput, origin: Origin) -> list[Partition]:
    if dataset.columns is not None:
        needed_columns(dataset.columns, inputs.section, f"{inputs.where}: dataset {dataset.name}")
    size = dataset.num_bytes // dataset.num_shards
    return [
        Partition(inputs.name, origin, (), size, start=shard, stop=shard + 1, dataset=dataset)
        for shard in range(dataset.num_shards)
    ]


def _plan_files(inputs: SourceInputs, files: Sequence[InputFile], origin: Origin, max_bytes: int) -> list[Partition]:
    """Groups of small files and ranges of large ones, in the order of the first file of each."""
    small_bytes = max_bytes // _GROUPS_OF_A_PARTITION
    place = {file.path: number for number, file in enumerate(files)}
    small = [file for file in files if file.num_bytes < small_bytes]
    planned = [
        Partition(inputs.name, origin, tuple(group), sum(file.num_bytes for file in group))
        for group in _groups(small, small_bytes)
    ]
    large = [file for file in files if file.num_bytes >= small_bytes]
    for file in large:
        if file.format != "parquet":
            planned += _cut_at_bytes(inputs.name, origin, file, max_bytes)
    # The footer of a large Parquet file says where it can be cut. Of small ones, as of JSON files, the first are looked into.
    tables = [file for file in large if file.format == "parquet"]
    for file, ranges in look_into(tables, section=inputs.section, where=inputs.where, max_bytes=max_bytes):
        planned += [
            Partition(inputs.name, origin, (file,), part.text_bytes, part.start, part.stop, part.hash_start, part.hash_stop)
            for part in ranges
        ]
    first_small = [file for file in small if file.format == "parquet"][:_SMALL_TABLES_LOOKED_INTO]
    for _ in look_into(first_small, section=inputs.section, where=inputs.where, max_bytes=max_bytes):
        pass
    return sorted(planned, key=lambda partition: (place[partition.files[0].path], partition.start))


def _cut_at_bytes(name: str, origin: Origin, file: InputFile, max_bytes: int) -> Iterator[Partition]:
    # Cut anywhere, not at lines: a partition reads the lines that start in its range, so nothing has to be read to plan.
    # Compressed files cannot be entered in the middle. Equal ranges, so that no partition is a small rest.
    is_cut = file.num_bytes > max_bytes and (
        file.format == "jsonl" or (file.format == "json" and is_cut_at_lines(file.path, name=file.name))
    )
    if not is_cut:
        yield Partition(name, origin, (file,), file.num_bytes)
        return
    num_ranges = -(-file.num_bytes // max_bytes)
    edges = [number * file.num_bytes // num_ranges for number in range(num_ranges + 1)]
    for start, stop in itertools.pairwise(edges):
        yield Partition(name, origin, (file,), stop - start, start=start, stop=stop, hash_start=start, hash_stop=stop)


def _groups(files: Iterable[InputFile], max_bytes: int) -> Iterator[list[InputFile]]:
    group: list[InputFile] = []
    size = 0
    for file in files:
        if group and (size + file.num_bytes > max_bytes or len(group) >= _MAX_FILES_OF_A_PARTITION):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.num_bytes
    if group:
        yield group
