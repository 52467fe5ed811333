"""Cutting the input into partitions: units of work with a fixed identity, whatever the number of workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.errors import InputError
from fastmix_data.messages import first_line
from pipelines.inputs.columns import check_columns, needed_columns
from pipelines.inputs.files import InputFile, SourceInputs
from pipelines.inputs.hub_datasets import DatasetInput
from pipelines.inputs.streams import open_binary

Origin = Literal["train", "valid", "both"]
NUM_WAVES = 3
# Whatever is held out anywhere must be known before a document is put into a training split. Files that are held out as a whole
# come first. Sources split by hash are next: the hash holds a document out wherever it occurs among them, so they need not know of
# one another. Training files of sources with held-out files of their own follow no hash, so they come last.
WAVE_OF_ORIGIN: dict[Origin, int] = {"valid": 0, "both": 1, "train": 2}
# A receipt names every file, so a partition of tiny ones is bounded by their number too.
_MAX_FILES_OF_A_PARTITION = 4096


@dataclass(frozen=True)
class Partition:
    """One unit of work.

    Attributes:
        origin: `train` and `valid` documents are all of that split; `both` are split by hash of their text.
        num_bytes: size of its input.
        start, stop: range of one file: bytes of plain .jsonl, row groups of .parquet, else nothing. Shard of a dataset: start.
        hash_start, hash_stop: bytes of the file whose content identifies the range.
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
    number: int = 0

    @property
    def label(self) -> str:
        """Name of its receipt and of its documents table."""
        return f"{self.source}-{self.origin}-{self.number:06d}"

    @property
    def wave(self) -> int:
        """When it is done: after all partitions of lower waves, whose held-out documents it has to know."""
        return WAVE_OF_ORIGIN[self.origin]

    @property
    def is_whole_file(self) -> bool:
        """Whether it covers all of its file."""
        return self.start == 0 and self.hash_stop - self.hash_start == self.files[0].num_bytes


def plan_partitions(inputs: SourceInputs, *, max_partition_bytes: int) -> list[Partition]:
    """All partitions of a source, in the order of its files.

    Raises:
        InputError: a Parquet file is damaged or lacks a text column, or the section names keys of files that have none.
    """
    _require_keys(inputs)
    training: Origin = "train" if inputs.valid_files else "both"
    planned = [*_plan_files(inputs, inputs.files, training, max_partition_bytes)]
    if inputs.dataset is not None:
        planned += _plan_dataset(inputs, inputs.dataset, training)
    planned += _plan_files(inputs, inputs.valid_files, "valid", max_partition_bytes)
    numbers: dict[Origin, Iterator[int]] = {origin: itertools.count() for origin in WAVE_OF_ORIGIN}
    return [replace(partition, number=next(numbers[partition.origin])) for partition in planned]


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


def _plan_files(inputs: SourceInputs, files: Sequence[InputFile], origin: Origin, max_bytes: int) -> Iterator[Partition]:
    texts = [file for file in files if file.format == "txt"]
    for group in _groups(texts, max_bytes):
        yield Partition(inputs.name, origin, tuple(group), sum(file.num_bytes for file in group))
    for file in files:
        if file.format == "parquet":
            yield from _plan_parquet(inputs, file, origin, max_bytes)
        elif file.format != "txt":
            # Cut anywhere, not at lines: a partition reads the lines that start in its range, so nothing has to be read to plan.
            # Compressed files cannot be entered in the middle. Equal ranges, so that no partition is a small rest.
            num_ranges = -(-file.num_bytes // max_bytes) if file.format == "jsonl" else 1
            edges = [number * file.num_bytes // num_ranges for number in range(num_ranges + 1)]
            for start, stop in itertools.pairwise(edges):
                yield Partition(
                    inputs.name, origin, (file,), stop - start, start=start, stop=stop, hash_start=start, hash_stop=stop
                )


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


def _plan_parquet(inputs: SourceInputs, file: InputFile, origin: Origin, max_bytes: int) -> Iterator[Partition]:
    """Ranges of row groups with at most `max_bytes` of uncompressed text, at least one row group each."""
    try:
        with open_binary(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            metadata, schema = parquet.metadata, parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        problem = f"not a readable Parquet file ({first_line(error)})"
        raise InputError(file.name, problem, "write or download it again") from error
    columns = check_columns(schema, inputs.section, f"{inputs.where}: {file.name}")
    if metadata.num_rows == 0:
        raise InputError(inputs.where, f"{file.name} has no rows", "remove it or fill it")
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    leaves = [number for number, path in enumerate(paths) if any(f"{path}.".startswith(f"{name}.") for name in columns)]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    begins = [min(_begin_of_column(group.column(i)) for i in range(group.num_columns)) for group in groups]
    start = 0
    for stop in range(1, len(groups) + 1):
        if stop == len(groups) or sum(sizes[start : stop + 1]) > max_bytes:
            # A row group lies in the file in one piece. The ranges between the first bytes of their first groups, the file's header
            # and footer added at the ends, cover every byte once: a change anywhere changes the hash of some partition.
            yield Partition(
                inputs.name,
                origin,
                (file,),
                sum(sizes[start:stop]),
                start=start,
                stop=stop,
                hash_start=0 if start == 0 else begins[start],
                hash_stop=file.num_bytes if stop == len(groups) else begins[stop],
            )
            start = stop


def _begin_of_column(chunk: pq.ColumnChunkMetaData) -> int:
    # Where there is a dictionary, its page comes before those of the data.
    dictionary = chunk.dictionary_page_offset
    return int(chunk.data_page_offset if dictionary is None else min(dictionary, chunk.data_page_offset))
