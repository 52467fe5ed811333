"""What is on the disk: whole or not counted, gone on from the last one that is whole, and a full disk stops nothing but a stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_disk import small_disk

from fastmix_data.errors import FastmixError, MismatchError
from train.checkpoints import checkpoints as checkpoints_module
from train.checkpoints.checkpoint_folder import check_checkpoints, complete_checkpoints
from train.checkpoints.checkpoints import CheckpointPlan, Checkpoints
from train.checkpoints.tensor_files import SavedTensors, write_runs
from train.proxy.engine import process_group


class Counter:
    """The smallest thing that trains: a vector that a step adds 1 to."""

    def __init__(self, size: int = 1000) -> None:
        self.rank, self.world_size, self.device = 0, 1, torch.device("cpu")
        self.value = torch.zeros(size)

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def runs(self) -> dict[str, tuple[int, torch.Tensor]]:
        return {"value": (0, self.value)}

    def counters(self) -> dict[str, float]:
        return {"steps": float(self.value[0])}

    def restore(self, saved: SavedTensors, counters: Any) -> None:
        self.value.copy_(saved["value"])
        assert counters["steps"] == self.value[0]


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group(rank=0, world_size=1):
        yield


def state() -> tuple[dict[str, Any], dict[str, tuple[int, torch.Tensor]]]:
    return {}, {}


def train(folder: Path, *, until: int, size: int = 1000, begin: int | None = None) -> Checkpoints:
    """A step and a look at a time, as a loop that trains does; each save is given the time to be written."""
    counter = Counter(size)
    with Checkpoints(CheckpointPlan(folder, {"recipe": "one"}, num_steps=1), counter) as checkpoints:
        saved = checkpoints.resume()
        assert begin is None or (saved.step if saved is not None else 0) == begin
        for step in range(saved.step if saved is not None else 0, until):
            assert counter.value.unique().tolist() == [step]
            counter.value += 1
            checkpoints.after_step(step + 1, state)
            for thread in threading.enumerate():
                if thread.name.startswith("checkpoint"):
                    thread.join()
        checkpoints.finish()
    return checkpoints


def kept(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in complete_checkpoints(folder)]


def test_the_last_two_are_kept_and_a_damaged_one_gives_way_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng()
    for name, harm in (
        ("truncated", "bytes instead of"),
        ("flipped", "is not what was written"),
        ("index", "not what was written"),
    ):
        folder = tmp_path / name
        train(folder, until=9, begin=0)
        newest, before = kept(folder)
        assert [path.name for path in sorted(folder.iterdir())] == [f"step-{step:08d}" for step in (before, newest)]
        last = folder / f"step-{newest:08d}"
        path = last / ("index.json" if name == "index" else "rank-00000.safetensors")
        content = bytearray(path.read_bytes())
        if name == "truncated":
            content = content[: rng.integers(1, len(content))]
        elif name == "flipped":
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        else:
            content = bytearray(content.replace(b'"step": ', b'"step": 1'))
        path.write_bytes(content)
        train(folder, until=12, begin=before)
        warning = capsys.readouterr().err
        assert (
            warning.count("\n") == 1 and harm in warning and str(last) in warning and "the checkpoint before is used" in warning
        )


def test_a_full_disk_costs_a_line_and_a_stop_on_it_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", size="2m") as make_room:
        folder, size = tmp_path / "disk" / "kept", 100_000  # three of 400 kB fit beside what follows, four do not
        train(folder, until=2, size=size)
        (steps,) = kept(folder)
        (tmp_path / "disk" / "other").write_bytes(bytes(1_400_000))
        after = train(folder, until=5, size=size, begin=steps)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) > 0 and after.saved_step == steps and kept(folder) == [steps]
        for line in lines:
            assert "no checkpoint was written (no space left on device); training goes on, and the one of step" in line
        assert [path.name for path in folder.iterdir()] == [f"step-{steps:08d}"]
        with pytest.raises(
            FastmixError, match=rf"step 7 could not be saved \(no space left on device\); mend .* from step {steps}"
        ):
            after.save(7, state)
        make_room()
        train(folder, until=6, size=size, begin=steps)
        assert kept(folder)[0] > steps


def test_what_is_saved_is_of_its_step_though_training_goes_on_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, counter = threading.Event(), Counter()
    real = checkpoints_module.write_runs
    monkeypatch.setattr(checkpoints_module, "write_runs", lambda *given: (written.wait(), real(*given))[1])
    plan = CheckpointPlan(tmp_path, {}, num_steps=1)
    with Checkpoints(plan, counter) as checkpoints:
        for step in range(1, 6):
            counter.value += 1
            checkpoints.after_step(step, state)
            assert kept(tmp_path) == []  # one at a time, and none counts before it is on the disk
        written.set()
        checkpoints.finish()
    again = Counter()
    saved = Checkpoints(plan, again).resume()
    assert saved is not None and saved.step == 1 and again.value.unique().tolist() == [1]


def test_files_are_those_of_safetensors_and_runs_of_any_cut_are_put_together(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    whole = {"a": torch.randn(101), "b": torch.randn(7).bfloat16(), "c": torch.arange(5, dtype=torch.uint8)}
    cuts = {name: [0, *sorted(rng.integers(0, len(values) + 1, 2)), len(values)] for name, values in whole.items()}
    for rank in range(3):
        runs = {name: (int(cuts[name][rank]), values[cuts[name][rank] : cuts[name][rank + 1]]) for name, values in whole.items()}
        write_runs(tmp_path / str(rank), runs)
        theirs = safetensors.torch.load_file(tmp_path / str(rank))
        assert all(torch.equal(theirs[f"{name}@{first}"], values) for name, (first, values) in runs.items())
    saved = SavedTensors([tmp_path / str(rank) for rank in (2, 0, 1)])
    assert all(torch.equal(saved[name], values) for name, values in whole.items()) and len(saved) == 3
    assert torch.equal(saved.read("a", 3, 99), whole["a"][3:99])
    with pytest.raises(FastmixError, match=r"elements \d+ to 101 of a are in no file"):
        SavedTensors([tmp_path / "0"]).read("a", 0, 101)


def test_checkpoints_of_another_search_or_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    train(tmp_path / "scores", until=3)
    check_checkpoints(tmp_path, identity={"recipe": "one"})
    with pytest.raises(MismatchError, match=r"a stopped search with another recipe lies here; .* --replace"):
        check_checkpoints(tmp_path, identity={"recipe": "two"})
    (tmp_path / "latest.json").write_text("{}")
    with pytest.raises(MismatchError, match=r"an earlier version of fastmix has stopped lies here; .* --replace"):
        check_checkpoints(tmp_path, identity={"recipe": "one"})
