"""Exports of a manifest whose tokens lie in Megatron's and MosaicML's own files."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import MismatchError
from fastmix_data.exports.format import Files
from fastmix_data.exports.formats import NAMES
from fastmix_data.machine import Workers
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.recipe.load import load_recipe
from fastmix_data.results.mixture import Mixture
from fastmix_data.workdir import ExportFolder
from pipelines.export.run import export
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess
from tests.exports.other_readers import read_with
from tests.written_tokens import documents, mds, megatron

BLOCK = 16


@pytest.fixture
def imported(tmp_path: Path) -> Manifest:
    web, code = documents(0, 150), documents(1, 30)
    # One by its absolute path, and one by the way out of the workdir.
    megatron(tmp_path, "web", web)
    sources = {"web": {"tokens": {"megatron": str(tmp_path / "web")}}, "code": {"tokens": mds(tmp_path, "code", code)}}
    shards = {"block_tokens": BLOCK, "valid_fraction": 0.05, "max_shard_bytes": 20_000}
    content = {"tokenizer": {"bytes": True}, "sources": sources, "shards": shards}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    catalog = preprocess(plan_preprocess(recipe), workers=Workers(quiet=True)).catalog
    emit = EmitSection(token_budget=3 * catalog.num_tokens("web") // 2 + 2 * catalog.num_tokens("code"), max_epochs=4)
    sizes = {"web": 1.5 * catalog.num_tokens("web"), "code": 2.0 * catalog.num_tokens("code")}
    mixture = Mixture(weights={name: size / sum(sizes.values()) for name, size in sizes.items()})
    return emit_manifest(catalog, mixture, emit=emit, directory=recipe.paths.manifest.root)


def _outside(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / "out")}


@pytest.mark.parametrize("name", NAMES)
def test_every_format_takes_tokens_out_of_foreign_files_and_writes_into_its_folder_alone(
    imported: Manifest, tmp_path: Path, name: str
) -> None:
    before = _outside(tmp_path)
    for files in get_args(Files):
        out = tmp_path / "out" / files
        if name == "torchtitan" and files != "reference":  # its reader goes by the manifest's paths
            with pytest.raises(MismatchError, match=r"imported files of .*web.*; export with --files reference"):
                export(imported.directory, to=name, directory=out, files=files)
            assert not out.exists()
            continue
        result = export(imported.directory, to=name, directory=out, files=files, workers=Workers(quiet=True))
        assert result.did_work and all(path.is_file() for path in result.files)
        written = read_json(ExportFolder(out).record)["files"]
        assert all(Path(os.path.normpath(out / path)).is_relative_to(out) for path in written)
        assert files == "reference" or not any(path.is_symlink() for path in out.rglob("*"))
        export(imported.directory, to=name, directory=out, files=files, workers=Workers(quiet=True), replace=True)
        if name == "webdataset":  # parts of a whole epoch and of the rest of one, in one list
            urls = [shard["url"] for shard in read_json(out / "index.json")["shardlist"]]
            assert len(set(urls)) == len(urls)
    assert _outside(tmp_path) == before


def test_megatron_reads_its_own_file_where_it_lies(imported: Manifest, tmp_path: Path) -> None:
    export(imported.directory, to="megatron", directory=tmp_path / "out")
    links = [path for path in (tmp_path / "out").rglob("*.bin") if path.is_symlink()]
    # All parts of the file in one data set: those of whole epochs, and those of the part of one.
    assert {path.resolve() for path in links} == {tmp_path / "web.bin"} and len(links) == 2
    expected: Counter[int] = Counter()
    for part in imported.parts:
        tokens = imported.open(part, root=imported.root_path).tokens_NT[part.block_start : part.block_stop, :-1]
        expected.update(np.asarray(tokens).reshape(-1)[: part.num_tokens].tolist())
    read = read_with("megatron", tmp_path / "out", 16, 100, package="megatron")
    found = Counter(chain.from_iterable(chain.from_iterable(file["sequences"] for file in read["files"])))
    assert found == expected
