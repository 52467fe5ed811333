from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from other_readers import read_with

import fastmix_data
from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.continuation import continue_after
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import load_catalog
from fastmix_data.workdir import Workdir
from pipelines.export.run import export

CONFIGURATIONS = """
from fastmix_corpus import on_corpus
from torchtitan.models.llama3.config_registry import llama3_debugmodel

def too_small():
    return on_corpus(llama3_debugmodel())

def tiny_on_corpus():
    config = llama3_debugmodel()
    config.model_spec.model.vocab_size = 65536
    return on_corpus(config)
"""


@pytest.fixture
def rest_manifest(plain_manifest: Manifest, tmp_path: Path) -> Manifest:
    """What is left of a run after 1000 of its tokens, with another mixture; it begins within epochs."""
    rest = emit_manifest(
        load_catalog(Workdir(plain_manifest.root_path).catalog),
        Mixture(weights={"books": 0.3, "code": 0.6, "single": 0.1}),
        emit=EmitSection(token_budget=2600, max_epochs=20),
        directory=tmp_path / "run" / "rest",
        after=continue_after(plain_manifest, 1000, sequence_length=8),
    )
    assert rest.starts_within_an_epoch
    return rest


def test_the_rest_of_a_run_is_as_it_was_where_shards_and_manifest_are_copies(rest_manifest: Manifest, tmp_path: Path) -> None:
    wanted = [item["labels"].tolist() for item in ManifestDataset(rest_manifest.path)]
    result = export(rest_manifest.path, to="torchtitan", directory=tmp_path / "titan", files="copy")
    shutil.rmtree(rest_manifest.root_path)
    assert [
        item["labels"].tolist() for item in ManifestDataset(tmp_path / "titan" / "manifest", root=tmp_path / "titan")
    ] == wanted
    assert f"of {len(wanted)} sequences" in result.remarks[0]
    assert "`training.seq_len` must be 8, as in the run that this one continues" in result.files[0].read_text()


@pytest.mark.parametrize(("which", "files"), [("plain", "reference"), ("masked", "copy"), ("rest", "reference")])
@pytest.mark.filterwarnings("ignore:.*do not divide over")
def test_torchtitan_trains_in_the_order_of_the_manifest_and_goes_on_with_other_ranks(
    which: str, files: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    manifest: Manifest = request.getfixturevalue(f"{which}_manifest")
    names = ("tokens", "labels", "positions")
    wanted = [[item[name].tolist() for name in names] for item in ManifestDataset(manifest.path, sequence_length=8)]
    result = export(manifest.path, to="torchtitan", directory=tmp_path / "titan", files=files)  # type: ignore[arg-type]
    assert result.files[0] == tmp_path / "titan" / "fastmix_corpus.py"
    (tmp_path / "configurations.py").write_text(CONFIGURATIONS)
    if files == "copy":
        shutil.rmtree(manifest.root_path)
    else:
        shutil.rmtree(manifest.directory)  # as `emit --replace` would, in the middle of training
    found = read_with("torchtitan", Path(fastmix_data.__file__).parents[1], tmp_path / "titan", tmp_path, 8)
    # Four steps of two ranks with three sequences each, then as many of three ranks with one each as are full.
    assert len(wanted) - 3 < len(found["sequences"]) <= len(wanted)
    assert found["sequences"] == wanted[: len(found["sequences"])]
    assert "the model has 2048 tokens and the corpus 65536" in found["refused"]
