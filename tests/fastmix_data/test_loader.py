from __future__ import annotations

import pickle
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastmix_data.errors import CorruptArtefactError, MismatchError, RecipeError
from fastmix_data.loader import IGNORED_LABEL, ManifestDataset
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.recipe.recipe import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog

MakeCatalog = Callable[..., Catalog]
WEIGHTS = {"books": 0.5, "code": 0.3, "notes": 0.2}
Row = tuple[int, tuple[int, ...], tuple[int, ...]]


@pytest.fixture
def catalog(make_catalog: MakeCatalog) -> Catalog:
    return make_catalog({"books": [410, 333], "code": [2000], "notes": [100, 70, 90]}, masked=("notes",))


@pytest.fixture
def directory(catalog: Catalog) -> Path:
    emit = EmitSection(token_budget=2600, max_epochs=4)
    emit_manifest(catalog, Mixture(weights=WEIGHTS), emit=emit, directory=catalog.root / "manifest")
    return catalog.root / "manifest"


def _rows(items: Iterable[dict[str, torch.Tensor]]) -> list[Row]:
    """Every sequence as plain values, whether items are single sequences or batches."""
    rows = []
    for item in items:
        assert all(values.dtype == torch.int64 for values in item.values())
        tokens, labels = torch.atleast_2d(item["tokens"]), torch.atleast_2d(item["labels"])
        for source, row, label in zip(torch.atleast_1d(item["source"]).tolist(), tokens.tolist(), labels.tolist(), strict=True):
            rows.append((source, tuple(row), tuple(label)))
    return rows


def _expected(catalog: Catalog, manifest: Manifest, length: int) -> Counter[Row]:
    """Every sequence of every block as often as the parts say, straight from the shards."""
    rows = {row.path: row for row in catalog.rows}
    expected: Counter[Row] = Counter()
    for part in manifest.parts:
        shard = catalog.open(rows[part.path])
        for block in range(part.block_start, part.block_stop):
            for start in range(0, manifest.block_tokens, length):
                tokens = shard.tokens_NT[block, start : start + length + 1].astype(np.int64)
                position = block * manifest.block_tokens + start + np.arange(length)
                labels = np.where(position < rows[part.path].num_labels, tokens[1:], IGNORED_LABEL)
                if (labels == IGNORED_LABEL).all():
                    continue
                if shard.loss_mask_NT is not None:
                    labels = np.where(shard.loss_mask_NT[block, start + 1 : start + length + 1] == 1, labels, IGNORED_LABEL)
                source = catalog.sources.index(part.source)
                expected[source, tuple(tokens[:-1].tolist()), tuple(labels.tolist())] += part.repeats
    return expected


@pytest.mark.parametrize("length", [16, 8, 4])
def test_every_block_occurs_exactly_as_often_as_the_parts_say(catalog: Catalog, directory: Path, length: int) -> None:
    dataset = ManifestDataset(directory, sequence_length=length)
    rows = _rows(dataset)
    assert Counter(rows) == _expected(catalog, load_manifest(directory), length)
    assert len(rows) == dataset.num_sequences == dataset.num_items()


def test_padding_and_tokens_without_loss_are_ignored_labels(catalog: Catalog, directory: Path) -> None:
    labels_NT = np.array([labels for _, _, labels in _rows(ManifestDataset(directory))])
    loss = {row.path: row for row in catalog.rows}
    manifest = load_manifest(directory)
    whole = [part for part in manifest.parts if part.is_whole_shard]
    assert any(loss[part.path].num_labels % 16 for part in whole)
    in_parts = 0
    for part in manifest.parts:
        shard = catalog.open(loss[part.path])
        position_NT = np.arange(part.block_start * 16, part.block_stop * 16).reshape(-1, 16)
        carries = position_NT < loss[part.path].num_labels
        if shard.loss_mask_NT is not None:
            carries &= shard.loss_mask_NT[part.block_start : part.block_stop, 1:] == 1
        in_parts += int(carries.sum()) * part.repeats
    assert (labels_NT != IGNORED_LABEL).sum() == in_parts


def test_positions_begin_anew_with_examples_and_count_upwards_elsewhere(catalog: Catalog, directory: Path) -> None:
    expected = {}
    for row in catalog.rows:
        shard = catalog.open(row)
        for block in range(row.num_blocks):
            count, positions = 0, []
            for place in range(16):
                count = 0 if shard.starts_NT is not None and shard.starts_NT[block, place] else count
                positions.append(count)
                count += 1
            expected[tuple(shard.tokens_NT[block, :-1].tolist())] = positions
    for items in (
        ManifestDataset(directory),
        DataLoader(ManifestDataset(directory, batch_size=5), batch_size=None, num_workers=2),
    ):
        found = [
            (tuple(tokens), positions)
            for item in items
            for tokens, positions in zip(
                *(torch.atleast_2d(item[name]).tolist() for name in ("tokens", "positions")), strict=True
            )
        ]
        assert all(positions == expected[tokens] for tokens, positions in found)
        assert sum(positions != list(range(16)) for _, positions in found) > 10
    unmasked = ManifestDataset(_manifest_of(catalog, {"books": 0.5, "code": 0.5, "notes": 0.0}), batch_size=3)
    assert all(torch.equal(item["positions"], torch.arange(16).expand_as(item["tokens"])) for item in unmasked)


def _manifest_of(catalog: Catalog, weights: dict[str, float]) -> Path:
    emit_manifest(catalog, Mixture(weights=weights), emit=EmitSection(token_budget=900), directory=catalog.root / "other")
    return catalog.root / "other"


def test_a_length_that_would_cut_examples_is_refused_where_there_are_any(catalog: Catalog, directory: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"sequence_length 2 is no multiple of 4, the window .*; choose 4 or a multiple of it that"
    ):
        ManifestDataset(directory, sequence_length=2)
    ManifestDataset(_manifest_of(catalog, {"books": 0.5, "code": 0.5, "notes": 0.0}), sequence_length=2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.filterwarnings("ignore:.*do not divide")
def test_ranks_partition_the_global_order(directory: Path, world_size: int, batch_size: int | None) -> None:
    order = _rows(ManifestDataset(directory))
    even = len(order) - len(order) % world_size
    for keep_rest, expected in ((False, order[:even]), (True, order)):
        for rank in range(world_size):
            dataset = ManifestDataset(directory, rank=rank, world_size=world_size, batch_size=batch_size, keep_rest=keep_rest)
            assert _rows(dataset) == expected[rank::world_size]


@pytest.mark.parametrize("world_size", [2, 3, 5, 7])
@pytest.mark.parametrize("batch_size", [None, 1, 4, 6])
@pytest.mark.parametrize("start", [0, 3])
def test_all_ranks_yield_equally_many_sequences_in_equally_many_items_and_what_is_left_out_is_said(
    directory: Path, world_size: int, batch_size: int | None, start: int
) -> None:
    def sizes(rank: int) -> list[int]:
        dataset = ManifestDataset(directory, rank=rank, world_size=world_size, batch_size=batch_size)
        dataset.load_state_dict({**dataset.state_dict(), "position": start})
        num_left_out = (dataset.num_sequences - start) % world_size
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            items = list(dataset)
        told = [f"the last {num_left_out} of {dataset.num_sequences} sequences do not divide over {world_size} ranks"]
        assert len(said) == (num_left_out > 0 and rank == 0)
        assert all(told[0] in str(warning.message) and "keep_rest=True" in str(warning.message) for warning in said)
        assert len(items) == dataset.num_items() and dataset.num_left_out() == num_left_out
        return [len(torch.atleast_2d(item["tokens"])) for item in items]

    every = {tuple(sizes(rank)) for rank in range(world_size)}
    assert len(every) == 1


def _consume(rank: int, directory: str, rendezvous: str, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=3)
    for num_workers in (0, 2):
        dataset = ManifestDataset(directory, batch_size=5, rank=rank, world_size=3)
        total = torch.zeros(1, dtype=torch.int64)
        for batch in DataLoader(dataset, batch_size=None, num_workers=num_workers):
            step = torch.tensor([len(batch["tokens"])])
            dist.all_reduce(step)  # each step waits for the other ranks, as the gradients of a trainer do
            total += step
        results.put(int(total))
    dist.destroy_process_group()


def test_ranks_that_wait_for_each_other_come_to_the_end(directory: Path, tmp_path: Path) -> None:
    num_sequences = ManifestDataset(directory).num_sequences
    assert num_sequences % 15 == 1  # one rank would have an item more
    results = mp.get_context("spawn").SimpleQueue()
    arguments = (str(directory), str(tmp_path / "rendezvous"), results)
    ranks = mp.start_processes(
        _consume, arguments, nprocs=3, join=False, start_method="spawn"
    )  # another test may have left a group here
    assert ranks is not None
    deadline = time.monotonic() + 60
    while not ranks.join(timeout=1):
        if time.monotonic() > deadline:
            for process in ranks.processes:
                process.kill()
            pytest.fail("a rank waits for another that has ended")
    assert [results.get() for _ in range(6)] == [num_sequences - 1] * 6


@pytest.mark.filterwarnings("ignore:.*do not divide")
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([None, 1, 3]), st.integers(0, 12)), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_resume_continues_the_exact_order_on_any_number_of_ranks(
    directory: Path, legs: list[tuple[int, int | None, int]]
) -> None:
    """Runs of a few items each, every one on another number of ranks and another batch size, then to the end on one."""
    order = _rows(ManifestDataset(directory))
    seen: list[Row] = []
    state: dict[str, Any] | None = None
    for world_size, batch_size, num_items in legs:
        before = int(state["position"]) if state else 0
        states, by_rank = [], []
        for rank in range(world_size):
            dataset = ManifestDataset(directory, rank=rank, world_size=world_size, batch_size=batch_size)
            if state:
                dataset.load_state_dict(state)
            num_items = min(num_items, (len(order) - before) // (world_size * (batch_size or 1)))
            iterator = iter(dataset)
            by_rank.append(_rows(next(iterator) for _ in range(num_items)))
            states.append(dataset.state_dict())
            assert states[-1] == dataset.state_after(num_items)
        assert all(other == states[0] for other in states)
        seen += [by_rank[position % world_size][position // world_size] for position in range(sum(map(len, by_rank)))]
        state = states[0]
    last = ManifestDataset(directory)
    last.load_state_dict(state or {})
    assert seen + _rows(last) == order


@pytest.mark.filterwarnings("ignore:.*do not divide")
def test_drop_last_gives_every_rank_the_same_number_of_full_batches(directory: Path) -> None:
    datasets = [ManifestDataset(directory, rank=rank, world_size=3, batch_size=5, drop_last=True) for rank in range(3)]
    sizes = {tuple(len(item["tokens"]) for item in dataset) for dataset in datasets}
    assert sizes == {(5,) * (datasets[0].num_sequences // 15)}


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*do not divide")
def test_workers_give_the_order_of_no_workers(directory: Path, context: str) -> None:
    dataset = ManifestDataset(directory, batch_size=4, rank=1, world_size=2)
    alone = _rows(DataLoader(dataset, batch_size=None))
    workers = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)
    assert _rows(workers) == alone == _rows(dataset)


def test_batches_made_by_the_dataloader_cover_everything_once(directory: Path) -> None:
    dataset = ManifestDataset(directory)
    assert _rows(DataLoader(dataset, batch_size=7)) == _rows(dataset)
    assert Counter(_rows(DataLoader(dataset, batch_size=7, num_workers=2))) == Counter(_rows(dataset))


def test_a_run_with_workers_resumes_from_the_items_the_training_loop_counted(directory: Path) -> None:
    dataset = ManifestDataset(directory, batch_size=4)
    loader = iter(DataLoader(dataset, batch_size=None, num_workers=2))
    consumed = _rows(next(loader) for _ in range(9))
    state = dataset.state_after(9)
    resumed = ManifestDataset(directory)
    resumed.load_state_dict(state)
    assert consumed + _rows(resumed) == _rows(ManifestDataset(directory))


class _StatefulWorkerDataset(torch.utils.data.IterableDataset[Any]):
    """What torchdata's StatefulDataLoader does in a worker: load the worker's own state, then take the state after every item."""

    def __init__(self, dataset: ManifestDataset, states: dict[int, dict[str, Any]]) -> None:
        self.dataset, self.states = dataset, states

    def __iter__(self) -> Any:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        if info.id in self.states:
            self.dataset.load_state_dict(self.states[info.id])
        for item in self.dataset:
            yield item, info.id, self.dataset.state_dict()


def test_states_of_workers_resume_those_workers(directory: Path) -> None:
    def loader(states: dict[int, dict[str, Any]]) -> Any:
        stateful = _StatefulWorkerDataset(ManifestDataset(directory, batch_size=4), states)
        return iter(DataLoader(stateful, batch_size=None, num_workers=2))

    states: dict[int, dict[str, Any]] = {}
    first, running = [], loader({})
    for _ in range(7):
        item, worker, states_of_worker = next(running)
        states[worker] = states_of_worker
        first.append(item)
    # Seven items: worker 0 goes on with its fifth, worker 1 with its fourth, so a new loader has them in the other order.
    rest = [item for item, _, _ in loader(states)]
    assert Counter(_rows(first) + _rows(rest)) == Counter(_rows(ManifestDataset(directory)))
    with pytest.raises(MismatchError, match="state_after"):
        ManifestDataset(directory, batch_size=4).load_state_dict(states[0])


def test_state_of_another_manifest_or_length_is_refused(catalog: Catalog, directory: Path) -> None:
    state = ManifestDataset(directory).state_dict()
    with pytest.raises(MismatchError, match="sequence_length is 16, here it is 8"):
        ManifestDataset(directory, sequence_length=8).load_state_dict(state)
    emit_manifest(catalog, Mixture(weights=WEIGHTS), emit=EmitSection(token_budget=2000), directory=catalog.root / "other")
    with pytest.raises(MismatchError, match="the loader state's manifest") as error:
        ManifestDataset(catalog.root / "other").load_state_dict(state)
    assert "start from the beginning" in str(error.value)


def test_a_sequence_length_that_does_not_divide_the_block_is_refused(directory: Path) -> None:
    with pytest.raises(
        RecipeError, match="sequence_length 12 does not divide its block_tokens 16; choose a divisor, for example 4"
    ):
        ManifestDataset(directory, sequence_length=12)


def test_a_missing_or_shortened_shard_is_named(catalog: Catalog, directory: Path) -> None:
    path = catalog.root / next(row for row in catalog.rows if row.source == "code" and row.num_blocks > 1).path
    path.write_bytes(path.read_bytes()[1024:])  # one sample of 16 tokens shorter, and still a shard
    with pytest.raises(CorruptArtefactError, match=f"{path.name}: has 4 blocks, the manifest says 5"):
        list(ManifestDataset(directory))
    path.unlink()
    with pytest.raises(CorruptArtefactError, match=f"{path.name}: the shard is missing"):
        list(ManifestDataset(directory))


def test_a_dataset_that_was_read_from_can_be_pickled(directory: Path) -> None:
    dataset = ManifestDataset(directory)
    rows = _rows(dataset)
    assert _rows(pickle.loads(pickle.dumps(dataset))) == rows
