"""About how many tokens a source has, judged by the beginnings of a few of its partitions: it decides how large a part the sample is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from fastmix_data.arrow_arrays import offsets_of
from fastmix_data.recipe.sources import TextSection
from fastmix_data.tokens.fidelity import LossCount
from pipelines.inputs.files import InputFile
from pipelines.inputs.formats import is_json
from pipelines.inputs.parquet_ranges import look_into
from pipelines.inputs.partitions import Partition
from pipelines.inputs.streams import expansion
from pipelines.preprocess.encode_batch import EncodingPlan, encode_batch
from pipelines.preprocess.plan import FIRST_READ_BYTES
from pipelines.reading.bad_records import BadRecords
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.documents import column_names
from pipelines.reading.json_lines import record_pieces, whole_lines
from pipelines.reading.readers import read_partition

_PARTITIONS_LOOKED_INTO = 4


def expected_tokens(partitions: Sequence[Partition], section: TextSection, encoding: EncodingPlan) -> int | None:
    """About how many tokens some partitions of one source come to; None if nobody says how large they are.

    The same whenever it is asked, and right to some tenths where a source's files are alike.

    Raises:
        InputError: the input is malformed.
    """
    size = sum(partition.num_bytes for partition in partitions)
    if not size:
        return None
    spread = np.unique(np.linspace(0, len(partitions) - 1, _PARTITIONS_LOOKED_INTO).round().astype(np.int64)).tolist()
    looked_into = [partitions[place] for place in spread]
    rates = [(rate, one.num_bytes) for one in looked_into if (rate := _tokens_per_byte(one, section, encoding)) is not None]
    # By size: a compressed file has several times the tokens for a byte that a plain one beside it has.
    num_bytes = sum(some for _, some in rates)
    return round(size * sum(rate * some for rate, some in rates) / num_bytes) if num_bytes else None


def _tokens_per_byte(partition: Partition, section: TextSection, encoding: EncodingPlan) -> float | None:
    """Tokens for each byte of the size that the plan knows; None of a partition in which nothing begins."""
    if len(partition.files) > 1:
        partition = replace(partition, files=partition.files[:1], num_bytes=partition.files[0].num_bytes)
    batch = next(read_partition(partition, section, DocumentCounts(), batch_bytes=FIRST_READ_BYTES), None)
    if batch is None:
        return None
    num_bytes_D = np.sum([np.diff(offsets_of(batch.column(name))) for name in column_names(section)], axis=0)
    count = int(np.searchsorted(np.cumsum(num_bytes_D), FIRST_READ_BYTES)) + 1
    bad_records = BadRecords(section.on_bad_record)
    encoded = encode_batch(batch.slice(0, count), encoding, counts=DocumentCounts(), lost=LossCount(), bad_records=bad_records)
    per_text_byte = len(encoded.documents.tokens) / max(1, int(num_bytes_D[:count].sum()))
    return per_text_byte * _text_share(partition, section, num_text_bytes=int(num_bytes_D.sum()))


def _text_share(partition: Partition, section: TextSection, *, num_text_bytes: int) -> float:
    """Bytes of text for each byte of a partition's size, given those of its first batch."""
    if not partition.files:
        return 1.0
    (file,) = partition.files
    if is_json(file.format):
        start, stop = (partition.start, partition.stop) if partition.is_part_of_file else (0, None)
        pieces, _ = record_pieces(file, start=start, stop=stop)
        num_read = sum(len(line) + 1 for lines in islice(whole_lines(pieces, FIRST_READ_BYTES), 1) for line in lines)
        return num_text_bytes / num_read * expansion(file.path, name=file.name, kind=file.format)
    # The size of a range of a large table is that of its text; of a small one, of the file.
    is_table = file.format == "parquet" and not partition.is_part_of_file
    return _text_of_table(file, section, where=partition.where) if is_table else 1.0


def _text_of_table(file: InputFile, section: TextSection, *, where: str) -> float:
    ((_, ranges),) = look_into([file], section=section, where=where, max_bytes=file.num_bytes)
    return sum(part.text_bytes for part in ranges) / file.num_bytes
