from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from flat_pools import Run, runs_of
from other_readers import read_with

from fastmix_data.atomic_files import read_json
from fastmix_data.manifest.manifest import Manifest
from pipelines.export.run import export

WINDOW = 17  # a block of the manifests, and the label of its last token


def _export(manifest: Manifest, directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    result = export(manifest.directory, to="datatrove", directory=directory, max_file_bytes=600)
    return read_with("datatrove", directory, package="datatrove"), result.remarks


def _positions(run: Run, *, file_tokens: int) -> list[int]:
    """Of each token within its document or its window, whichever began later."""
    positions: list[int] = []
    for number, begins in enumerate(run.begins):
        positions.append(0 if begins or number % file_tokens % WINDOW == 0 else positions[-1] + 1)
    return positions


def test_datatrove_reads_every_window_of_every_pool(plain_manifest: Manifest, tmp_path: Path) -> None:
    read, remarks = _export(plain_manifest, tmp_path / "out")
    runs = runs_of(plain_manifest)
    assert {name: pool["windows"] for name, pool in read.items()} == {
        name: windows for name, run in runs.items() if (windows := run.windows(WINDOW))
    }
    assert read["books"]["windows_by_file"][:2] == [17, 17] and read["books"]["token_size"] == 2
    assert all(pool["mask"] == [] for pool in read.values())
    unread = sum(run.repeats * (len(run.tokens) % WINDOW) for run in runs.values())
    assert f"{unread} of {plain_manifest.num_tokens} tokens are less than a window of {WINDOW}" in remarks[1]
    nanoset = read_json(tmp_path / "out" / "nanoset.json")
    listed = Counter(Path(folder).name for folder in nanoset["dataset"]["dataset_folder"])
    assert listed == {name: runs[name].repeats for name in read} and listed["books"] > 1
    assert nanoset["num_samples"] == sum(listed[name] * len(pool["windows"]) for name, pool in read.items())
    weights = zip(nanoset["dataset"]["dataset_folder"], nanoset["dataset"]["dataset_weights"], strict=True)
    assert all(weight == len(read[Path(folder).name]["windows"]) for folder, weight in weights)


def test_datatrove_reads_masks_and_positions(masked_manifest: Manifest, tmp_path: Path) -> None:
    read, remarks = _export(masked_manifest, tmp_path / "out")
    runs = runs_of(masked_manifest)
    assert any("every token carries loss there" in remark for remark in remarks)
    for name, pool in read.items():
        assert pool["mask"] == ([] if name.startswith("books") else [int(loss) for loss in runs[name].loss])
        assert pool["windows"] == runs[name].windows(WINDOW)
        positions = _positions(runs[name], file_tokens=17 * WINDOW)
        assert [value for window in pool["positions"] for value in window] == positions[: len(pool["windows"]) * WINDOW]
    code = runs["code.rest"]
    assert 0 < sum(code.loss) < len(code.loss) and read["code.rest"]["ends_by_file"][-1][-1] == len(code.tokens) % (17 * WINDOW)
