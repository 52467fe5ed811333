"""Small files share partitions, large ones are cut, and all of it is in the order of the files' names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from fastmix_data.errors import InputError
from fastmix_data.recipe.sources import SourceSection
from pipelines.inputs.files import resolve_inputs
from pipelines.inputs.partitions import Partition, plan_partitions
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.readers import read_partition

_PACK = {"jsonl": bytes, "json": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}


def put(path: Path, texts: list[str], form: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "txt":
        path.write_text("".join(texts))
    elif form == "parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=2)
    else:
        path.write_bytes(_PACK[form]("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))


def planned(base: Path, max_partition_bytes: int = 1 << 27, **keys: object) -> tuple[list[Partition], SourceSection]:
    section = SourceSection.model_validate({"files": "data", **keys})
    inputs = resolve_inputs({"a": section}, {}, base=base, max_partition_bytes=max_partition_bytes)["a"]
    return plan_partitions(inputs, max_partition_bytes=max_partition_bytes), section


def rows(partition: Partition, section: SourceSection) -> list[dict[str, str]]:
    batches = list(read_partition(partition, section, DocumentCounts()))
    assert len(batches) <= 2, "a batch for every file costs more than its text"
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "jsonl.zst", "parquet", "txt"])
def test_hundreds_of_tiny_files_share_a_partition(tmp_path, form):
    for number in range(300):
        put(tmp_path / "data" / f"{number:03d}.{form}", [f"document {number}"], form)
    (partition,), section = planned(tmp_path)
    expected = {"parquet": "row 0", "txt": "file"}.get(form, "line 1")
    assert [(row["text"], row["file"], row["locator"]) for row in rows(partition, section)] == [
        (f"document {number}", f"data/{number:03d}.{form}", expected) for number in range(300)
    ]


def test_formats_share_a_partition_too_and_large_files_stand_in_their_place(tmp_path):
    put(tmp_path / "data" / "a.jsonl", ["a1", "a2"], "jsonl")
    put(tmp_path / "data" / "b.jsonl", [f"b{number}" * 20 for number in range(60)], "jsonl")
    put(tmp_path / "data" / "c.txt", ["c"], "txt")
    put(tmp_path / "data" / "d.parquet", [f"d{number}" * 150 for number in range(20)], "parquet")
    put(tmp_path / "data" / "e.parquet", ["e"], "parquet")
    partitions, section = planned(tmp_path, max_partition_bytes=8000)
    files = [[file.name.removeprefix("data/") for file in partition.files] for partition in partitions]
    assert files[0] == ["a.jsonl", "c.txt", "e.parquet"]
    assert files[1:] == [["b.jsonl"]] * files.count(["b.jsonl"]) + [["d.parquet"]] * files.count(["d.parquet"])
    assert [partition.number for partition in partitions] == list(range(len(partitions)))
    texts = [row["text"] for partition in partitions for row in rows(partition, section)]
    assert texts == ["a1", "a2", "c", "e", *(f"b{n}" * 20 for n in range(60)), *(f"d{n}" * 150 for n in range(20))]


def test_groups_are_bounded_and_do_not_follow_the_size_of_one_file(tmp_path):
    for number in range(40):
        put(tmp_path / "data" / f"{number:02d}.jsonl", ["x" * 80], "jsonl")
    partitions, _ = planned(tmp_path, max_partition_bytes=8 * 500)
    assert [len(partition.files) for partition in partitions] == [5] * 8
    assert all(partition.num_bytes <= 500 for partition in partitions)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_tiny_file_that_is_wrong_is_named(tmp_path, form):
    for number in range(3):
        put(tmp_path / "data" / f"{number}.{form}", ["x"], form)
    if form == "jsonl":
        (tmp_path / "data" / "1.jsonl").write_text("\n \n")
    else:
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "data" / "1.parquet")
    with pytest.raises(InputError, match=rf"sources\.a: data/1\.{form} (holds no document|has no rows); remove it or fill it"):
        partitions, section = planned(tmp_path)
        rows(partitions[0], section)


def test_tables_beyond_the_first_are_checked_when_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.inputs.partitions._SMALL_TABLES_LOOKED_INTO", 1)
    put(tmp_path / "data" / "0.parquet", ["x"], "parquet")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "data" / "1.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "data" / "2.parquet")
    (partition,), section = planned(tmp_path)
    with pytest.raises(InputError, match=r"sources\.a: data/1\.parquet: has no 'text'; the keys there are body"):
        rows(partition, section)
    (tmp_path / "data" / "1.parquet").unlink()
    (partition,), section = planned(tmp_path)
    with pytest.raises(InputError, match=r"data/2\.parquet: column 'text' holds int64, not text"):
        rows(partition, section)
