from __future__ import annotations

import csv
import dataclasses
import gzip
from collections import Counter
from pathlib import Path
from typing import Any

from flat_pools import Run, padding_of, runs_of
from other_readers import read_with

from fastmix_data.manifest.manifest import Manifest, save_manifest
from pipelines.export.run import export

WINDOW = 16  # the manifests' blocks


def _expected(runs: dict[str, Run]) -> Counter[tuple[str, tuple[int, ...]]]:
    windows: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, run in runs.items():
        for window in run.windows(WINDOW):
            windows[name.removesuffix(".rest"), tuple(window)] += run.repeats
    return windows


def _documents(read: dict[str, list[list[int]]], pool: str) -> list[tuple[int, int]]:
    """Documents of a pool's files, counted through all of them: as files, so their cuts begin documents anew."""
    return [tuple(document) for path, found in sorted(read.items()) if path.split("/")[0] == pool for document in found]


def _export(manifest: Manifest, directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    result = export(manifest.directory, to="olmo", directory=directory / "out", max_file_bytes=600)
    return read_with("olmo", directory / "out", directory / "work", package="olmo_core"), result.remarks


def test_olmo_core_reads_every_window_as_often_as_the_manifest_says(plain_manifest: Manifest, tmp_path: Path) -> None:
    # Tokens count upwards: the end-of-text token is found once in the run of `books`, within its first shard but one.
    manifest = save_manifest(dataclasses.replace(plain_manifest, eos_id=101))
    read, remarks = _export(manifest, tmp_path)
    runs = runs_of(manifest)
    expected = _expected(runs)
    assert Counter((source, tuple(window)) for source, window in read["windows"]) == expected
    assert max(expected.values()) > 1
    # A pool is a source of the mixture: the windows are those of the plain list, and nothing is left to rounding.
    assert Counter(map(tuple, read["mixture_windows"])) == Counter(window for _, window in expected.elements())
    assert read["mixture_tokens"] == {name: run.repeats * len(run.windows(WINDOW)) * WINDOW for name, run in runs.items()}
    unread = manifest.num_tokens - WINDOW * expected.total()
    assert unread > 0 and f"{unread} of {manifest.num_tokens} tokens are less than a window" in remarks[1]
    # 288 tokens are the whole windows that 600 bytes hold. Partitions, the end-of-text token and files end documents; shards do not.
    assert read["dtype"] == "uint16"
    assert _documents(read["documents"], "books") == [(0, 101), (101, 288), (0, 122), (122, 288), (0, 167)]


def test_olmo_core_reads_masks_and_examples(masked_manifest: Manifest, tmp_path: Path) -> None:
    manifest = save_manifest(dataclasses.replace(masked_manifest, dtype="<u4", vocab_size=100_000))
    read, remarks = _export(manifest, tmp_path)
    assert read["dtype"] == "uint32" and "mixture_windows" not in read
    assert any("there is no source_mixture.json" in remark for remark in remarks)
    runs = runs_of(manifest)
    assert Counter((source, tuple(window)) for source, window in read["windows"]) == _expected(runs)
    carries = {
        (name.removesuffix(".rest"), t): loss for name, run in runs.items() for t, loss in zip(run.tokens, run.loss, strict=True)
    }
    for (source, window), labels in zip(read["windows"], read["labels"], strict=True):
        assert labels == [token if carries[source, token] else -100 for token in window[1:]] + [-100]
    learned = sum(label != -100 for labels in read["labels"] for label in labels)
    assert 0 < learned < len(read["labels"]) * (WINDOW - 1)
    _check_examples(manifest, runs["code.rest"], tmp_path / "out" / "code.rest", read)


def _check_examples(manifest: Manifest, run: Run, folder: Path, read: dict[str, Any]) -> None:
    """Tables name each example and no padding, and where it lies."""
    padding, at, found = padding_of(manifest, "code"), 0, []
    for path in sorted(folder.glob("token_ids_part_*.npy")):
        with gzip.open(path.with_suffix(".csv.gz"), "rt") as file:
            rows = list(csv.reader(file))
        key = path.relative_to(folder.parent).as_posix()
        assert [(int(row[0]), int(row[1])) for row in rows] == [tuple(document) for document in read["documents"][key]]
        found += [(at + int(row[0]), row[3], int(row[4])) for row in rows]
        at += path.stat().st_size // 4
    tokens = [number for number, begins in enumerate(run.begins) if begins and run.tokens[number] not in padding]
    assert at == len(run.tokens) and [start for start, _, _ in found] == tokens and padding
    parts = [part for part in manifest.parts if part.source == "code"]
    places = [
        (part.path, part.block_start * manifest.block_tokens + position) for part in parts for position in range(part.num_tokens)
    ]
    assert [(path, position) for _, path, position in found] == [places[number] for number in tokens]
