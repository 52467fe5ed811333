"""Lines that one process appends and others read at the same time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fastmix_data.results.metrics_file import MetricsFile, MetricsReader, keep_lines, read_lines


def test_a_reader_sees_each_whole_line_once_and_all_of_them_again_when_some_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "search" / "lines.jsonl"
    reader, writer = MetricsReader(path), MetricsFile(path)
    assert reader.new_lines() == (False, [])
    lines = [{"event": "update", "step": step} for step in range(4)]
    for line in lines[:2]:
        writer.append(line)
    assert reader.new_lines() == (True, lines[:2])
    assert reader.new_lines() == (False, [])
    writer.append(lines[2])
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"event":"upd')
    assert reader.new_lines() == (False, lines[2:3])

    keep_lines(path, lambda line: line["step"] != 1)
    assert path.read_bytes() == whole.replace(b'{"event":"update","step":1}\n', b"")
    writer.close()
    for line in (lines[3], lines[3]):  # so that the file is longer than it was
        writer.append(line)
    assert reader.new_lines() == (True, [lines[0], lines[2], lines[3], lines[3]])


def test_a_line_that_a_crash_tore_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"event":"begin"}\n{"event":"upda\n[1]\n{"event":"end"}\n{"event"')
    assert read_lines(path) == [{"event": "begin"}, {"event": "end"}]


def test_a_full_disk_costs_lines_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    writer = MetricsFile(Path("/dev/full"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            writer.append({"event": "update"})
    writer.close()
    assert [record.getMessage() for record in caplog.records] == [
        "/dev/full: No space left on device; lines are left out until they can be written"
    ]
