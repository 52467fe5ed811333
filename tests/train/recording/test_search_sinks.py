"""Figures of a search for Weights & Biases; TensorBoard's are read back after a kill in `train/search/test_search.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fastmix_data.errors import InputError
from fastmix_data.loading.sinks import require_package
from fastmix_data.workdir import SearchFolder
from train.recording.search_sinks import SearchSinks

UPDATE = {"event": "update", "tokens": 4096, "train_loss": 2.5, "mfu": None, "weights": {"a": 0.25}, "target_losses": {"t": None}}


def test_wandb_is_offline_and_a_search_keeps_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sinks = SearchSinks(["wandb"], folder=SearchFolder(tmp_path), per_step=1024)
    sinks.run = "abcd1234"
    assert not sinks({"event": "stage", "tokens": 0}) and not list(tmp_path.iterdir())
    assert sinks(UPDATE) and not sinks({**UPDATE, "tokens": 8192})
    assert wandb.run is not None and wandb.run.offline and wandb.run.id == "abcd1234"
    figures = {name: value for name, value in dict(wandb.run.summary).items() if not name.startswith("_")}
    assert figures == {"search_train_loss": 2.5, "search_weight/a": 0.25, "search_step": 8}
    sinks.close()
    assert len(list(tmp_path.glob("wandb/offline-run-*-abcd1234/*.wandb"))) == 1


def test_a_package_that_is_missing_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        InputError, match=re.escape("needs the package wandb, which is not installed; pip install 'fastmix[logging]'")
    ):
        require_package("wandb")
