"""What a recipe's patterns come to: formats, pointers, descriptions beside the data, names of any bytes."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from fastmix_data.errors import InputError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.sources import SourceSection
from pipelines.init_recipe import write_recipe
from pipelines.inputs.files import resolve_inputs
from pipelines.inputs.partitions import plan_partitions
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.readers import read_partition

TEXTS = [f'text {number}, \\ "quoted" [é] {{x}}' for number in range(5)]
RECORDS = [{"text": text, "nested": {"a": [1, {"b": "],}"}]}} for text in TEXTS]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
ARRAY = json.dumps(RECORDS, indent=1, ensure_ascii=False).replace("\n", "\r\n").encode()
VALUES = "\n".join(json.dumps(record, indent=2) for record in RECORDS).encode()
PACKED = {".gz": gzip.compress, ".zst": zstandard.compress}


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def content_for(name: str, content: bytes = LINES) -> bytes:
    return PACKED.get(Path(name).suffix.lower(), bytes)(content)


def rows_of(base: Path, *, max_partition_bytes: int = 1 << 27, section: SourceSection | None = None, **keys) -> list[dict]:
    """All documents of a source, from a recipe's section or its keys."""
    section = section or SourceSection.model_validate(keys)
    inputs = resolve_inputs({"a": section}, {}, base=base, max_partition_bytes=max_partition_bytes)["a"]
    partitions = plan_partitions(inputs, max_partition_bytes=max_partition_bytes)
    return [
        row
        for partition in partitions
        for batch in read_partition(partition, section, DocumentCounts())
        for row in batch.to_pylist()
    ]


def refusal(base: Path, **keys) -> str:
    with pytest.raises(InputError) as caught:
        rows_of(base, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def warnings_of(base: Path, files: str) -> tuple[str, ...]:
    section = SourceSection.model_validate({"files": files})
    return resolve_inputs({"a": section}, {}, base=base, max_partition_bytes=1 << 27)["a"].warnings


_NAMES = [
    "A.JSONL",
    "A.Jsonl.GZ",
    "a.ndjson",
    "a.NDJSON.zst",
    "a.json",
    "a.JSON",
    "a.json.gz",
    "c4.00000-of-01024.json.gz",
    "a.json.ZST",
]


# `datasets` itself knows small letters only.
@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in _NAMES for way in ("exact", "folder", "init", "dataset") if way != "dataset" or name.islower()],
)
def test_json_lines_are_read_under_every_usual_ending(tmp_path, name, way):
    put(tmp_path / "data" / name, content_for(name))
    if way == "init":
        (section,) = load_recipe(write_recipe(tmp_path)).sources.values()
        rows = rows_of(tmp_path, section=section)
    elif way == "dataset":
        rows = rows_of(tmp_path, dataset="data")
    else:
        rows = rows_of(tmp_path, files="data" if way == "folder" else f"data/{name}")
    assert [(row["text"], row["locator"]) for row in rows] == [(text, f"line {n}") for n, text in enumerate(TEXTS, 1)]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst"])
@pytest.mark.parametrize("content", [ARRAY, VALUES, b" \n" + json.dumps(RECORDS).encode()], ids=["array", "values", "one line"])
def test_an_array_and_values_over_several_lines_are_read_record_by_record(tmp_path, name, content):
    put(tmp_path / name, content_for(name, content))
    assert [(row["text"], row["locator"]) for row in rows_of(tmp_path, files=name, max_partition_bytes=100)] == [
        (text, f"record {number}") for number, text in enumerate(TEXTS, 1)
    ]
    (section,) = load_recipe(write_recipe(tmp_path)).sources.values()
    assert len(rows_of(tmp_path, section=section)) == 5


def test_a_large_json_file_of_lines_is_cut_as_jsonl_is(tmp_path):
    put(tmp_path / "a.json", LINES)
    rows = rows_of(tmp_path, files="a.json", max_partition_bytes=100)
    assert [row["text"] for row in rows] == TEXTS and rows[-1]["locator"].startswith("byte ")


def test_a_json_array_that_is_cut_short_or_holds_a_bad_record_is_one_line(tmp_path):
    put(tmp_path / "a.json", ARRAY[:-10])
    assert "a.json: the JSON array is cut short; write or download the file again" in refusal(tmp_path, files="a.json")
    put(tmp_path / "a.json", ARRAY.replace(b'"text": "text 3', b'"text": 3, "x": "'))
    assert "a.json: record 4: 'text' holds a JSON number, not text" in refusal(tmp_path, files="a.json")


def test_descriptions_beside_the_data_are_not_read_and_said(tmp_path):
    put(tmp_path / "data" / "train.jsonl", LINES)
    put(tmp_path / "data" / "dataset_info.json", b'{"description": "a long text about it",\n "n": 5}')
    assert len(rows_of(tmp_path, files="data")) == 5
    assert "data/dataset_info.json, of one JSON object without text, which describes data" in warnings_of(tmp_path, "data")[0]
    (section,) = load_recipe(write_recipe(tmp_path)).sources.values()
    assert len(rows_of(tmp_path, section=section)) == 5
    assert len(rows_of(tmp_path, dataset="data")) == 5
    # Named as such, or with the key in it, it is a record.
    assert "dataset_info.json: record 1: has no 'text'" in refusal(tmp_path, files="data/dataset_info.json")
    put(tmp_path / "data" / "more.json", json.dumps(RECORDS[0], indent=2).encode())
    assert len(rows_of(tmp_path, files="data")) == 6


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.txt.gz", "decompress it: only JSON is read compressed"),
        ("a.parquet.zst", "decompress it: only JSON is read compressed"),
        ("a.jsonl.bz2", "decompress it, or compress it with gzip or zstd"),
        ("a.csv", "use .jsonl"),
    ],
)
def test_a_format_that_is_not_read_says_what_to_do(tmp_path, name, remedy):
    put(tmp_path / "data" / name, b"x")
    for files in (f"data/{name}", "data", "data/*"):
        assert remedy in refusal(tmp_path, files=files)
    put(tmp_path / "data" / "b.jsonl", LINES)
    ending = name[1:]
    for files in ("data", "data/*"):
        assert len(rows_of(tmp_path, files=files)) == 5
        assert f"1 files in '{files}' are not .jsonl" in warnings_of(tmp_path, files)[0]
        assert f"(1 ending in {ending})" in warnings_of(tmp_path, files)[0]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.jsonl.gz", "p.json.zst", "p.json", "p.parquet"])
def test_pointers_of_git_lfs_are_named_before_any_work(tmp_path, name):
    put(tmp_path / "data" / "good.jsonl", LINES)
    put(tmp_path / "data" / name, LFS)
    where = f"data/{name} is a Git LFS pointer, not the data; run `git lfs pull` in its repository"
    for keys in ({"files": "data"}, {"files": f"data/{name}"}, {"files": "data/good.jsonl", "valid_files": f"data/{name}"}):
        assert where in refusal(tmp_path, **keys)
    assert f"data/{name}: it is a Git LFS pointer" in write_recipe(tmp_path).read_text()
    (tmp_path / "data" / "good.jsonl").unlink()
    assert "is a Git LFS pointer" in refusal(tmp_path, dataset="data")


def test_names_that_are_not_utf8_are_shown_escaped_and_read(tmp_path):
    folder = tmp_path / "data" / os.fsdecode(b"caf\xe9")
    for number, ending in enumerate((".jsonl", ".txt", "-1.jsonl")):
        put(folder / (os.fsdecode(b"na\xefve") + ending), json.dumps({"text": f"{number}"}).encode())
    with (folder / os.fsdecode(b"na\xefve.parquet")).open("wb") as file:
        pq.write_table(pa.table({"text": ["3"]}), file)
    expected = [
        r"data/caf\xe9/na\xefve-1.jsonl",
        r"data/caf\xe9/na\xefve.jsonl",
        r"data/caf\xe9/na\xefve.parquet",
        r"data/caf\xe9/na\xefve.txt",
    ]
    for files in ("data", "data/caf?/na*", "**"):
        assert [row["file"] for row in rows_of(tmp_path, files=files)] == expected
    recipe = load_recipe(write_recipe(tmp_path))
    assert sorted(row["file"] for section in recipe.sources.values() for row in rows_of(tmp_path, section=section)) == expected
    assert r"data/caf\xe9/na\xefve.parquet: has no 'body'" in refusal(tmp_path, files="data", text="body")
    assert r"the nearest there is caf\xe9" in refusal(tmp_path, files="data/cafe")
