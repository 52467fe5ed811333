from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from other_readers import read_with

import fastmix_data
from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.manifest import Manifest
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


@pytest.mark.parametrize(("which", "files"), [("plain", "reference"), ("masked", "copy")])
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
