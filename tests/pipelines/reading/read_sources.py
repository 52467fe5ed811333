"""Reading what a recipe's source names, without the rest of a run; and one set of records in every format that holds records."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fastmix_data.recipe.sources import SourceSection
from pipelines.inputs.files import SourceInputs, resolve_inputs
from pipelines.inputs.partitions import plan_partitions
from pipelines.reading.bad_records import BadRecords
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.readers import read_partition

FORMS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "saved", "streamed")


def inputs_of(base: Path, source: dict[str, Any], *, max_partition_bytes: int = 1 << 27) -> SourceInputs:
    sections = {"src": SourceSection.model_validate(source)}
    return resolve_inputs(sections, {}, base=base, max_partition_bytes=max_partition_bytes)["src"]


def read(
    base: Path,
    source: dict[str, Any],
    *,
    batch_bytes: int = 1 << 20,
    max_partition_bytes: int = 1 << 27,
    bad_records: BadRecords | None = None,
) -> tuple[list[dict[str, Any]], DocumentCounts, int]:
    """Rows of all partitions, counts, number of partitions."""
    inputs = inputs_of(base, source, max_partition_bytes=max_partition_bytes)
    counts, rows = DocumentCounts(), []
    partitions = plan_partitions(inputs, max_partition_bytes=max_partition_bytes)
    for partition in partitions:
        for batch in read_partition(partition, inputs.section, counts, batch_bytes=batch_bytes, bad_records=bad_records):
            rows += batch.to_pylist()
    return rows, counts, len(partitions)


def write_records(folder: Path, form: str, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Write records in one of FORMS; the origin that a source of the recipe names them by."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if form in ("parquet", "saved"):
        table = pa.Table.from_pylist(list(records))
        if form == "parquet":
            pq.write_table(table, folder / "a.parquet", row_group_size=2)
        else:
            import datasets

            datasets.Dataset(table).save_to_disk(folder / "saved")
    elif form == "streamed":
        (folder / "streamed").mkdir()
        (folder / "streamed" / "train.jsonl").write_bytes(lines)
    else:
        compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[form]
        (folder / f"a.{form}").write_bytes(compress(lines))
    return {"dataset": form} if form in ("saved", "streamed") else {"files": f"a.{form}"}
