from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.atomic_files import write_parquet
from fastmix_data.shards.catalog import ShardRow
from fastmix_data.shards.table_rows import TableRows, column_of, distinct, places_of


def _row(number: int) -> ShardRow:
    return ShardRow(
        f"s{number % 3}", "train", f"{number}.tar", 1 + number % 5, 9, 9, 9, 1, "<u2", number % 2 == 0, number, "0", number
    )


@given(st.lists(st.integers(0, 99), max_size=30))
def test_a_table_answers_as_a_list_of_its_rows_does(numbers: list[int]) -> None:
    expected = [_row(number) for number in numbers]
    rows = TableRows.of(ShardRow, iter(expected))
    assert list(rows) == [rows[index] for index in range(len(rows))] == expected
    assert rows == expected and rows == TableRows.of(ShardRow, expected) and rows != [*expected, _row(0)]
    assert rows[1:7:2] == tuple(expected[1:7:2]) and list(pickle.loads(pickle.dumps(rows))) == expected
    for name in ("num_blocks", "has_mask"):
        assert column_of(rows, name).tolist() == [getattr(row, name) for row in expected]
    assert distinct(rows, "source") == list(dict.fromkeys(row.source for row in expected))
    among = ["s2", "s0", "s1"]
    assert places_of(rows, "source", among=among).tolist() == [among.index(row.source) for row in expected]
    with pytest.raises(IndexError):
        rows[len(expected)]


def test_a_file_without_a_newer_column_has_its_default(tmp_path: Path) -> None:
    expected = [_row(0), _row(15)]
    write_parquet(tmp_path / "rows.parquet", TableRows.of(ShardRow, expected).table.drop(["num_padding"]))
    assert [row.num_padding for row in TableRows.read(tmp_path / "rows.parquet", ShardRow)] == [0, 0]
