"""A folder that `datasets` would read: its splits, our readers, and nothing left out in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastmix_data.errors import InputError
from fastmix_data.recipe.sources import SourceSection
from pipelines.inputs.files import resolve_inputs
from pipelines.inputs.partitions import plan_partitions
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.readers import read_partition


def read(base: Path, **keys) -> list[str]:
    section = SourceSection.model_validate({"dataset": "data", **keys})
    inputs = resolve_inputs({"a": section}, {}, base=base, max_partition_bytes=1 << 20)["a"]
    batches = [
        batch
        for partition in plan_partitions(inputs, max_partition_bytes=1 << 20)
        for batch in read_partition(partition, section, DocumentCounts())
    ]
    return [text for batch in batches for text in batch.column("text").to_pylist()]


def lines(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_odd_columns_and_a_first_file_without_text_stop_nothing(tmp_path, form):
    files = [
        [{"text": None, "n": 1}],
        [{"text": "b", "n": "one"}, {"text": "c", "n": "two"}],
        [{"text": "d", "n": {"x": 1}, "more": [1]}],
        [{"text": "e"}],
    ]
    for number, records in enumerate(files):
        path = tmp_path / "data" / f"train-{number}.{form}"
        path.parent.mkdir(exist_ok=True)
        if form == "jsonl":
            lines(path, *records)
        else:
            schema = pa.schema([("text", pa.string())])
            table = pa.Table.from_pylist(records)
            pq.write_table(table.set_column(0, schema.field(0), table.column("text").cast(pa.string())), path)
    assert read(tmp_path) == ["b", "c", "d", "e"]


def test_formats_side_by_side_are_refused_and_named(tmp_path):
    lines(tmp_path / "data" / "a.jsonl", {"text": "a"})
    pq.write_table(pa.table({"text": ["b"]}), tmp_path / "data" / "b.parquet")
    with pytest.raises(InputError, match=r"would leave out .* of 'data', which holds \.jsonl and \.parquet files; .*files: data"):
        read(tmp_path)
    assert len(resolve_inputs({"a": SourceSection(files=("data",))}, {}, base=tmp_path, max_partition_bytes=1)["a"].files) == 2


def test_linked_folders_that_the_library_does_not_see_are_not_lost_in_silence(tmp_path):
    lines(tmp_path / "data" / "a.jsonl", {"text": "a"})
    lines(tmp_path / "elsewhere" / "b.jsonl", {"text": "b"})
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=r"`datasets` would leave out more/b\.jsonl of 'data'; name the files with files: instead"
    ):
        read(tmp_path)


def test_a_description_that_names_the_files_of_configurations_is_followed(tmp_path):
    for name in ("one", "two"):
        lines(tmp_path / "data" / name / "x.jsonl", {"text": name})
    configs = "\n".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl" for name in ("one", "two"))
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    assert read(tmp_path, dataset_config="two") == ["two"]
    with pytest.raises(InputError, match=r"'data' cannot be read \(Config name is missing.*check dataset_config"):
        read(tmp_path)


def test_splits_and_hidden_files_are_the_librarys(tmp_path):
    lines(tmp_path / "data" / "train.jsonl", {"text": "a"})
    lines(tmp_path / "data" / "test.jsonl", {"text": "b"})
    (tmp_path / "data" / "._train.jsonl").write_bytes(b"\0\5\x16\7")
    assert read(tmp_path) == ["a"] and read(tmp_path, dataset_split="test") == ["b"]
    with pytest.raises(InputError, match=r"has no split 'dev', only train, test\); set dataset_split") as caught:
        read(tmp_path, dataset_split="dev")
    assert "network" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_only_the_library_reads_it_reads_by_the_columns_that_are_asked_for(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("text,n\na,1\nb,2\n")
    (tmp_path / "data" / "b.csv").write_text("text,n\nc,one\n")
    assert read(tmp_path) == ["a", "b", "c"]
    # To the library a line of text is a document.
    (tmp_path / "data" / "a.csv").unlink()
    (tmp_path / "data" / "b.csv").unlink()
    (tmp_path / "data" / "a.txt").write_text("one\ntwo\n")
    assert read(tmp_path) == ["one", "two"]
