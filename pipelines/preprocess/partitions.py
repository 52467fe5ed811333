"""Cutting the input into partitions: units of work with a fixed identity, whatever the number of workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.errors import InputError
from pipelines.preprocess.hub_datasets import DatasetInput, missing_column
from pipelines.preprocess.inputs import InputFile, SourceInputs
from pipelines.preprocess.streams import open_binary

Origin = Literal["train", "valid", "both"]
_MAX_FILES_OF_A_PARTITION = 4096


@dataclass(frozen=True)
class Partition:
    """One unit of work.

    Attributes:
        origin: `train` and `valid` documents are all of that split; `both` are split by hash of their text.
        number: from 0 within (source, origin).
        start, stop: range of one file: bytes of plain .jsonl, row groups of .parquet, else nothing. Shard of a dataset: start.
        hash_start, hash_stop: bytes of the file whose content identifies the range.
        num_bytes: size of its input.
    """

    source: str
    origin: Origin
    number: int
    files: tuple[InputFile, ...]
    start: int
    stop: int
    hash_start: int
    hash_stop: int
    num_bytes: int
    dataset: DatasetInput | None = None

    @property
    def label(self) -> str:
        """Name of its receipt and of its documents table."""
        return f"{self.source}-{self.origin}-{self.number:06d}"

    @property
    def is_whole_file(self) -> bool:
        """Whether it covers all of its file."""
        return self.start == 0 and self.hash_stop - self.hash_start == self.files[0].num_bytes


def plan_partitions(inputs: SourceInputs, *, max_partition_bytes: int) -> list[Partition]:
    """All partitions of a source, in the order of its files.

    Raises:
        InputError: a Parquet file is damaged or lacks a text column.
    """
    training: Origin = "train" if inputs.valid_files else "both"
    planned = [*_plan_files(inputs, inputs.files, training, max_partition_bytes)]
    if inputs.dataset is not None:
        planned += _plan_dataset(inputs, inputs.dataset, training)
    planned += _plan_files(inputs, inputs.valid_files, "valid", max_partition_bytes)
    counts = {"train": 0, "valid": 0, "both": 0}
    numbered = []
    for partition in planned:
        numbered.append(replace(partition, number=counts[partition.origin]))
        counts[partition.origin] += 1
    return numbered


def _plan_dataset(inputs: SourceInputs, dataset: DatasetInput, origin: Origin) -> list[Partition]:
    missing = [key for key in inputs.section.text_keys if dataset.columns is not None and key not in dataset.columns]
    if missing:
        raise InputError(missing_column(f"{inputs.where}: dataset {dataset.name}", missing[0], dataset.columns or ()))
    size = dataset.num_bytes // dataset.num_shards
    return [Partition(inputs.name, origin, 0, (), shard, shard + 1, 0, 0, size, dataset) for shard in range(dataset.num_shards)]


def _plan_files(inputs: SourceInputs, files: Sequence[InputFile], origin: Origin, max_bytes: int) -> Iterator[Partition]:
    texts = [file for file in files if file.format == "txt"]
    for group in _groups(texts, max_bytes):
        size = sum(file.num_bytes for file in group)
        yield Partition(inputs.name, origin, 0, tuple(group), 0, 0, 0, 0, size)
    for file in files:
        if file.format == "parquet":
            yield from _plan_parquet(inputs, file, origin, max_bytes)
        elif file.format != "txt":
            # Equal ranges, so that no partition is a small rest.
            num_ranges = -(-file.num_bytes // max_bytes) if file.format == "jsonl" else 1
            edges = [number * file.num_bytes // num_ranges for number in range(num_ranges + 1)]
            for start, stop in itertools.pairwise(edges):
                yield Partition(inputs.name, origin, 0, (file,), start, stop, start, stop, stop - start)


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
        raise InputError(
            f"{file.name}: not a readable Parquet file ({str(error).splitlines()[0]}); write or download it again"
        ) from error
    _check_columns(inputs, file, schema)
    if metadata.num_rows == 0:
        raise InputError(f"{inputs.where}: {file.name} has no rows; remove it or fill it")
    leaves = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path in inputs.section.text_keys]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    begins = [min(_begin_of_column(group.column(i)) for i in range(group.num_columns)) for group in groups]
    start = 0
    for stop in range(1, len(groups) + 1):
        if stop == len(groups) or sum(sizes[start : stop + 1]) > max_bytes:
            hash_start = 0 if start == 0 else begins[start]
            hash_stop = file.num_bytes if stop == len(groups) else begins[stop]
            yield Partition(inputs.name, origin, 0, (file,), start, stop, hash_start, hash_stop, sum(sizes[start:stop]))
            start = stop


def _begin_of_column(chunk: pq.ColumnChunkMetaData) -> int:
    dictionary = chunk.dictionary_page_offset
    return int(chunk.data_page_offset if dictionary is None else min(dictionary, chunk.data_page_offset))


def _check_columns(inputs: SourceInputs, file: InputFile, schema: pa.Schema) -> None:
    for key in inputs.section.text_keys:
        if key not in schema.names:
            raise InputError(missing_column(f"{inputs.where}: {file.name}", key, schema.names))
        kind = schema.field(key).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (
            pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value) or _is_binary(value)
        ):
            raise InputError(f"{inputs.where}: {file.name}: column {key!r} holds {kind}, not text; name another column")


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
