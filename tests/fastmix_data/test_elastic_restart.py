"""Runs that stop and go on: on other numbers of ranks and workers, while items are read ahead, and at the end of the manifest."""

from __future__ import annotations

import json
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastmix_data.errors import CorruptArtefactError, MismatchError
from fastmix_data.loader import ManifestDataset, ManifestLoader
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog

pytestmark = pytest.mark.filterwarnings("ignore:.*do not divide")


@pytest.fixture
def directory(make_catalog: Callable[..., Catalog]) -> Path:
    catalog = make_catalog({"books": [410, 333], "code": [700], "notes": [100, 70]}, masked=("notes",))
    mixture = Mixture(weights={"books": 0.5, "code": 0.3, "notes": 0.2})
    emit_manifest(catalog, mixture, emit=EmitSection(token_budget=1500, max_epochs=4), directory=catalog.root / "manifest")
    return catalog.root / "manifest"


def sequences(item: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tokens) for tokens in torch.atleast_2d(item["tokens"]).tolist()]


def in_order(items_R: list[list[dict[str, torch.Tensor]]]) -> list[tuple[int, ...]]:
    """What all ranks read, back in the global order: within a step, positions go round the ranks."""
    read = []
    for step in range(max(map(len, items_R))):
        rows_R = [sequences(items[step]) if step < len(items) else [] for items in items_R]
        read += [rows[turn] for turn in range(max(map(len, rows_R))) for rows in rows_R if turn < len(rows)]
    return read


@contextmanager
def running(loaders: list[ManifestLoader]) -> Iterator[list[Iterator[Any]]]:
    iterators = [iter(loader) for loader in loaders]
    yield iterators
    for iterator in iterators:
        iterator.close()  # type: ignore[attr-defined]


def make_loaders(
    directory: Path, ranks: int, state: dict[str, Any] | None, *, num_workers: int = 0, **options: Any
) -> list[ManifestLoader]:
    loaders = []
    for rank in range(ranks):
        dataset = ManifestDataset(directory, rank=rank, world_size=ranks, **options)
        loaders.append(ManifestLoader(dataset, num_workers=num_workers))
        if state is not None:
            loaders[-1].load_state_dict(state)
    return loaders


END = {"keep_rest": {"keep_rest": True}, "drop_last": {"drop_last": True}, "even": {}}
LEG = st.tuples(st.integers(1, 5), st.sampled_from([None, 1, 3, 7]), st.integers(0, 40), st.sampled_from(sorted(END)))


@given(st.lists(LEG, min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
def test_nothing_is_lost_or_doubled_wherever_a_run_stops_and_whatever_it_left_out(
    directory: Path, legs: list[tuple[int, int | None, int, str]]
) -> None:
    """Each leg reads some items, or all that it gives; its state is that of every rank, and a last leg on one rank reads the rest."""
    order = [rows for item in ManifestDataset(directory) for rows in sequences(item)]
    read: list[tuple[int, ...]] = []
    state: dict[str, Any] | None = None
    num_items = 0
    for ranks, batch_size, num_steps, end in legs:
        loaders = make_loaders(directory, ranks, state, batch_size=batch_size, **END[end])
        before = int(state["position"]) if state else 0
        with running(loaders) as iterators:
            # Asked for more than it has, a rank comes to its end; others may have an item more.
            items_R = [list(islice(iterator, num_steps)) for iterator in iterators]
        states = [json.loads(json.dumps(loader.state_dict())) for loader in loaders]
        assert all(other == states[0] for other in states)
        num_items += max(map(len, items_R))
        assert states[0]["items"] == num_items
        read += in_order(items_R)
        state = states[0]
        assert int(state["position"]) == len(read) >= before
    (last,) = make_loaders(directory, 1, state, keep_rest=True)
    rest = [rows for item in last for rows in sequences(item)]
    assert read + rest == order
    assert len(last) == num_items + len(rest)


def test_four_ranks_stop_with_workers_ahead_and_three_go_on(directory: Path) -> None:
    order = [rows for item in ManifestDataset(directory) for rows in sequences(item)]
    four = make_loaders(directory, 4, None, num_workers=2, batch_size=3)
    with running(four) as iterators:
        read = in_order([[next(iterator) for _ in range(3)] for iterator in iterators])
        states = [loader.state_dict() for loader in four]  # the workers have read on by now, each by two items
    assert read == order[:36] and all(state == states[0] for state in states)
    three = make_loaders(directory, 3, states[0], num_workers=1, batch_size=5, keep_rest=True)
    assert read + in_order([list(loader) for loader in three]) == order


def test_a_dataset_that_workers_read_does_not_guess_how_far_the_loop_is(directory: Path) -> None:
    for context in ("fork", "spawn"):
        dataset = ManifestDataset(directory, batch_size=3)
        iterator = iter(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=context))
        next(iterator)
        with pytest.raises(MismatchError, match=r"read by workers of a DataLoader.*use ManifestLoader and its state_dict"):
            dataset.state_dict()
        state = dataset.state_after(1)
        dataset.load_state_dict(state)
        assert dataset.state_dict() == state


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_ahead_in_a_thread_changes_neither_order_nor_state(directory: Path, num_workers: int) -> None:
    order = [rows for item in ManifestDataset(directory) for rows in sequences(item)]
    dataset = ManifestDataset(directory, batch_size=4, read_ahead=3)
    loader = ManifestLoader(dataset, num_workers=num_workers)
    with running([loader]) as (iterator,):
        read = [rows for _ in range(5) for rows in sequences(next(iterator))]
        state = loader.state_dict()
        if num_workers == 0:
            assert dataset.state_dict() == state
            pickle.dumps(dataset)  # spawned workers get it, and no thread with it
    resumed = ManifestDataset(directory, batch_size=4, read_ahead=3)
    resumed.load_state_dict(state)
    assert state["position"] == 20 and read + [rows for item in resumed for rows in sequences(item)] == order
    assert not [thread for thread in threading.enumerate() if thread.name == "fastmix-read-ahead"]


def test_an_error_of_reading_ahead_comes_to_the_loop(directory: Path) -> None:
    for path in directory.parent.glob("shards/code/train-*.tar"):
        path.unlink()
    with pytest.raises(CorruptArtefactError, match="the shard is missing"):
        list(ManifestDataset(directory, batch_size=4, read_ahead=2))


def test_accelerate_leaves_the_loader_alone_and_may_not_divide_a_ranks_items_again(directory: Path) -> None:
    dataset = ManifestDataset(directory, batch_size=4, rank=1, world_size=2)
    loader = ManifestLoader(dataset)
    assert Accelerator(cpu=True).prepare(loader) is loader
    plain = DataLoader(dataset, batch_size=None)
    refused = r"rank 1 of 2 over the ranks a second time; give `prepare` a ManifestLoader"
    for dispatch, put_on_device in ((False, False), (True, True)):
        sharded = prepare_data_loader(
            DataLoader(ManifestDataset(directory, rank=1, world_size=2), batch_size=4),
            num_processes=2, process_index=1, dispatch_batches=dispatch, put_on_device=put_on_device, device=torch.device("cpu"),
        )  # fmt: skip
        with pytest.raises(MismatchError, match=refused):
            next(iter(sharded))
    with pytest.raises(MismatchError, match=refused):
        next(iter(Accelerator(cpu=True).prepare(plain)))


def test_a_length_counts_what_was_read_before_so_that_trainers_count_on(directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a DataLoader warns if more items come than it said
        three = ManifestLoader(ManifestDataset(directory, batch_size=2, rank=0, world_size=3, keep_rest=True))
        with running([three]) as (iterator,):
            for _ in range(4):
                next(iterator)
            state = three.state_dict()
        four = ManifestLoader(ManifestDataset(directory, batch_size=2, rank=0, world_size=4, keep_rest=True))
        whole = len(four)
        four.load_state_dict(state)
        assert len(four) == 4 + len(list(four)) != whole
