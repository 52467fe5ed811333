"""Imported token files whose own trainer reads them where they lie."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmix_data.atomic_files import read_json
from fastmix_data.machine import Workers
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.recipe.load import load_recipe
from fastmix_data.results.mixture import Mixture
from pipelines.export.run import export
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess
from tests.exports.other_readers import read_with
from tests.written_tokens import datatrove, documents, olmo

BLOCK = 16
PASSES = 2
DOCUMENTS = (documents(1, 20), documents(2, 9), documents(3, 30))
FILES = [np.concatenate(of_file) for of_file in DOCUMENTS]


def _windows(length: int) -> list[list[int]]:
    """Of one pass over the files: none goes on from one to the next."""
    return [
        tokens_T[start : start + length].tolist() for tokens_T in FILES for start in range(0, len(tokens_T) - length + 1, length)
    ]


def _manifest(folder: Path, tokens: dict[str, Any], *, valid_fraction: float = 0.0) -> Manifest:
    """Two and a half passes over `web`, which are these files, and half of one over `code`, a text."""
    (folder / "code.jsonl").write_text("".join(json.dumps({"text": f"line {number} of code"}) + "\n" for number in range(60)))
    content = {
        "tokenizer": {"bytes": True},
        "sources": {"web": {"tokens": tokens}, "code": {"files": "code.jsonl"}},
        "shards": {"block_tokens": BLOCK, "valid_fraction": valid_fraction, "max_shard_bytes": 20_000},
    }
    (folder / "recipe.yaml").write_text(json.dumps(content))
    recipe = load_recipe(folder / "recipe.yaml")
    catalog = preprocess(plan_preprocess(recipe), workers=Workers(quiet=True)).catalog
    sizes = {"web": (PASSES + 0.5) * catalog.num_tokens("web"), "code": 0.5 * catalog.num_tokens("code")}
    emit = EmitSection(token_budget=round(sum(sizes.values())), max_epochs=4)
    mixture = Mixture(weights={name: size / sum(sizes.values()) for name, size in sizes.items()})
    return emit_manifest(catalog, mixture, emit=emit, directory=recipe.paths.manifest.root)


def _write_olmo(folder: Path, *, masks: bool = False) -> dict[str, Any]:
    for number, of_file in enumerate(DOCUMENTS):
        olmo(folder, f"part-{number}", of_file)
        if masks:
            (FILES[number] % 2).astype("?").tofile(folder / f"mask-{number}.npy")
    return {"olmo": "part-*.npy", "dtype": "uint16"} | ({"masks": "mask-*.npy"} if masks else {})


@pytest.mark.parametrize("masks", [False, True])
def test_olmo_core_reads_the_imported_files_themselves_with_their_masks_and_documents(tmp_path: Path, masks: bool) -> None:
    manifest = _manifest(tmp_path, _write_olmo(tmp_path, masks=masks))
    out = tmp_path / "out"
    remarks = export(manifest.directory, to="olmo", directory=out).remarks
    dataset = read_json(out / "dataset.json")
    own = [str(tmp_path / f"part-{number}.npy") for number in range(len(FILES))]
    assert dataset["paths"][: PASSES * len(own)] == PASSES * own and not (out / "web").exists()
    assert all(Path(path).is_relative_to(out) for path in dataset["paths"][PASSES * len(own) :])
    assert any("imported files of web are read where they lie" in remark for remark in remarks)
    read, windows = read_with("olmo", out, tmp_path / "work", package="olmo_core"), _windows(BLOCK)
    assert read["windows"][: PASSES * len(windows)] == [["web", window] for window in PASSES * windows]
    num_read = sum(len(window) for _, window in read["windows"])
    assert f"{manifest.num_tokens - num_read} of {manifest.num_tokens} tokens are less than a window" in " ".join(remarks)
    for number, of_file in enumerate(DOCUMENTS):
        ends = np.cumsum(list(map(len, of_file))).tolist()
        assert read["documents"][f"../part-{number}.npy"] == [list(pair) for pair in zip([0, *ends], ends, strict=False)]
    if masks:
        learned = [[token if token % 2 else -100 for token in window[1:]] + [-100] for window in windows]
        assert read["labels"][: len(windows)] == learned
    else:
        assert sorted(read["mixture_windows"]) == sorted(window for _, window in read["windows"])


def test_datatrove_reads_the_imported_files_by_links_in_a_folder(tmp_path: Path) -> None:
    for number, of_file in enumerate(DOCUMENTS):
        datatrove(tmp_path, f"part-{number}", of_file)
    manifest = _manifest(tmp_path, {"datatrove": "part-*.ds"})
    out = tmp_path / "out"
    export(manifest.directory, to="datatrove", directory=out)
    links = sorted(path for path in (out / "web").iterdir() if path.is_symlink())
    assert [path.resolve().name for path in links if path.suffix == ".ds"] == [
        f"part-{number}.ds" for number in range(len(FILES))
    ]
    assert len(links) == 2 * len(FILES) and not any(path.is_symlink() for path in (out / "web.rest").iterdir())
    read = read_with("datatrove", out, package="datatrove")
    assert read["web"]["windows"] == _windows(BLOCK + 1)
    assert read["web"]["ends_by_file"] == [np.cumsum(list(map(len, of_file))).tolist() for of_file in DOCUMENTS]
    assert read["web"]["tokenizer"] == read["web.rest"]["tokenizer"]
    assert Counter(Path(folder).name for folder in read_json(out / "nanoset.json")["dataset"]["dataset_folder"])["web"] == PASSES


@pytest.mark.parametrize("why", ["copy", "held out", "another format"])
def test_files_that_are_not_all_of_a_source_or_of_another_format_are_written(tmp_path: Path, why: str) -> None:
    manifest = _manifest(tmp_path, _write_olmo(tmp_path), valid_fraction=0.2 if why == "held out" else 0.0)
    to = "datatrove" if why == "another format" else "olmo"
    result = export(manifest.directory, to=to, directory=tmp_path / "out", files="copy" if why == "copy" else "reference")
    written = list((tmp_path / "out" / "web").iterdir())
    assert written and not any(path.is_symlink() for path in written)
    assert not any("read where they lie" in remark for remark in result.remarks)
