"""Looking into Parquet files before any work: whether a column can be read as text, and where a large file can be cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.errors import InputError
from fastmix_data.messages import first_line
from fastmix_data.recipe.sources import TextSection
from pipelines.inputs.columns import check_columns
from pipelines.inputs.files import InputFile
from pipelines.inputs.streams import open_binary

# Footers are small: to have one is to wait for the disk or the store. With more threads our own part is what counts.
_NUM_THREADS = 8


@dataclass(frozen=True)
class ParquetRange:
    """Row groups of a file, and the bytes of it whose content identifies them."""

    start: int
    stop: int
    text_bytes: int
    hash_start: int
    hash_stop: int


def look_into(
    files: Sequence[InputFile], *, section: TextSection, where: str, max_bytes: int
) -> Iterator[tuple[InputFile, list[ParquetRange]]]:
    """Yield each file with its ranges of at most `max_bytes` of uncompressed text, at least one row group each.

    Raises:
        InputError: a file is damaged, has no rows, or lacks a column of text.
    """
    # A thread pool takes all its work at once; a hundred thousand open files would be waiting for their turn.
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for some in _in_chunks(files, 64 * _NUM_THREADS):
            yield from zip(some, pool.map(lambda file: _ranges(file, section, where, max_bytes), some), strict=True)


def _in_chunks(files: Sequence[InputFile], size: int) -> Iterable[Sequence[InputFile]]:
    return (files[start : start + size] for start in range(0, len(files), size))


def _ranges(file: InputFile, section: TextSection, where: str, max_bytes: int) -> list[ParquetRange]:
    try:
        with open_binary(file.path) as stream:
            parquet = pq.ParquetFile(stream)
            metadata = parquet.metadata
            columns = check_parquet(file, parquet, section=section, where=where)
    except (pa.ArrowException, OSError) as error:
        problem = f"not a readable Parquet file ({first_line(error)})"
        raise InputError(file.name, problem, "write or download it again") from error
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    leaves = [number for number, path in enumerate(paths) if any(f"{path}.".startswith(f"{name}.") for name in columns)]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    begins = [min(_begin_of_column(group.column(i)) for i in range(group.num_columns)) for group in groups]
    ranges: list[ParquetRange] = []
    start = 0
    for stop in range(1, len(groups) + 1):
        if stop == len(groups) or sum(sizes[start : stop + 1]) > max_bytes:
            # A row group lies in the file in one piece. The ranges between the first bytes of their first groups, the file's header
            # and footer added at the ends, cover every byte once: a change anywhere changes the hash of some partition.
            hash_start = 0 if start == 0 else begins[start]
            hash_stop = file.num_bytes if stop == len(groups) else begins[stop]
            ranges.append(ParquetRange(start, stop, sum(sizes[start:stop]), hash_start, hash_stop))
            start = stop
    return ranges


def _begin_of_column(chunk: pq.ColumnChunkMetaData) -> int:
    # Where there is a dictionary, its page comes before those of the data.
    dictionary = chunk.dictionary_page_offset
    return int(chunk.data_page_offset if dictionary is None else min(dictionary, chunk.data_page_offset))


def check_parquet(file: InputFile, parquet: pq.ParquetFile, *, section: TextSection, where: str) -> list[str]:
    """The columns of a file that a section reads; refuses one without rows, or whose columns cannot be read so.

    Raises:
        InputError: it is one.
    """
    columns = check_columns(parquet.schema_arrow, section, f"{where}: {file.name}")
    if parquet.metadata.num_rows == 0:
        raise InputError(where, f"{file.name} has no rows", "remove it or fill it")
    return columns
