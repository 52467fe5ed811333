from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from fastmix_data.errors import InputError
from fastmix_data.loading.sinks import TensorBoardSink, WandbSink

FIGURES = [({"source_loss/books": 2.5, "source_drift_largest": 0.125}, 100), ({"source_loss/books": 1.25}, 90)]


def test_tensorboard_reads_the_figures_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path / "events")
    assert not (tmp_path / "events").exists()
    for figures, step in FIGURES:
        sink(figures, step)
    read = EventAccumulator(str(tmp_path / "events")).Reload()  # before it is closed: a run is watched while it goes on
    assert [(event.step, event.value) for event in read.Scalars("source_loss/books")] == [(100, 2.5), (90, 1.25)]
    assert [(event.step, event.value) for event in read.Scalars("source_drift_largest")] == [(100, 0.125)]
    sink.close()


def logged_rows(path: Path) -> list[dict[str, float]]:
    """What wandb's own reader finds in the file of an offline run."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, rows = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append({(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item})
    return rows


def test_an_offline_run_of_wandb_holds_the_figures_over_their_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    sink = WandbSink(project="fastmix", mode="offline", dir=str(tmp_path))
    for figures, step in FIGURES:
        sink(figures, step)
    sink.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30  # wandb's own process may write the file a little after it has said that the run is finished
    while not (rows := logged_rows(path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    kept = [{name: value for name, value in row.items() if name.startswith("source_")} for row in rows]
    assert kept == [{**figures, "source_step": step} for figures, step in FIGURES]


@pytest.mark.parametrize(("sink", "package"), [(TensorBoardSink("x"), "tensorboard"), (WandbSink(), "wandb")])
def test_a_package_that_is_missing_is_named(
    sink: TensorBoardSink | WandbSink, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs the package {package}, .*; pip install 'fastmix\[logging\]'"):
        sink({"source_loss/books": 1.0}, 1)
