"""The production loader: iterates a manifest from PyTorch, on any number of ranks and workers, resumable on any other number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastmix_data.arrays import Int64s
from fastmix_data.errors import MismatchError
from fastmix_data.loading.read_ahead import read_ahead
from fastmix_data.loading.transformers_inputs import IGNORED_LABEL, Item
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.order import Located
from fastmix_data.manifest.written_order import order_of
from fastmix_data.remote.shard_store import ShardStore, is_on_one_machine
from fastmix_data.shards.cached_shard import Fetched
from fastmix_data.shards.examples import restarting_positions
from fastmix_data.shards.open_shard import max_open_shards
from fastmix_data.shards.shard_format import StridedShard
from fastmix_data.shards.table_rows import distinct

__all__ = ["IGNORED_LABEL", "Item", "ManifestDataset", "ManifestLoader", "ShardStore"]
_PLANNED_SEQUENCES = 4096
_PLANNED_NUMBERS = 1 << 26


class _OpenPart(NamedTuple):
    """What is read of a part's shard; with the sources of its sequences if it is materialized."""

    views: Any  # SequenceViews, or a CachedShard
    tag_digits_ND: Any  # (num_blocks, 5), or those of some blocks by their number


_NO_TAGS = np.zeros((0, 0), np.uint8)
_Opened = Callable[[int], _OpenPart]


class ManifestDataset(IterableDataset[Item]):
    """One pass over a manifest, which is the whole run: repeats are part of it.

    Items are `{"tokens": int64 (L,), "positions": int64 (L,), "labels": int64 (L,), "source": int64 ()}`; with `batch_size` B every
    item is a batch and each tensor has a leading dimension B. Labels are the next tokens, already shifted, and -100 where there is
    none (padding) or where it carries no loss. Positions count from 0, and begin anew with each example of a source with a mask: as
    `position_ids` they tell a model which tokens may attend to each other. Sources are numbered as in `manifest.served_sources`.

    All ranks yield equal numbers of items, and equal numbers of sequences in each: a loop in which ranks wait for each other ends. The
    last sequences, fewer than there are ranks, are left out and warned of; `keep_rest` gives them to the first ranks.

    The global order is fixed by the manifest, the sequence length and the seed. At every step the R ranks together read the next
    R * B positions; rank r reads positions r, r + R, ... of them, so global batches do not depend on R as long as R * B does not
    change. Workers take a rank's items in turn (worker i of n the items i, i + n, ...), which is the order in which a `DataLoader`
    asks for them: with `DataLoader(dataset, batch_size=None, num_workers=n)` the order is that of no workers for every n. If
    batches are left to the DataLoader instead, each is made of the items of one worker: deterministic, but other batches for each n.

    Iteration starts at the loaded state, or at the beginning. `state_dict` counts what this object's latest iterator has yielded. What
    DataLoader workers yielded is known to the training loop only: `ManifestLoader` counts it, or ask `state_after(number of items)`.
    `StatefulDataLoader` of torchdata works too: in a worker, the state says how many items that worker has yielded.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        sequence_length: int | None = None,
        batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        drop_last: bool = False,
        keep_rest: bool = False,
        read_ahead: int = 0,
        root: str | Path | None = None,
        store: ShardStore | None = None,
    ) -> None:
        """Read the manifest; shards are mapped when first needed.

        Args:
            path: the manifest's folder or `manifest.json`.
            sequence_length: L, divides the manifest's block_tokens, which is the default; of a manifest that continues another one
                the default is the length that it is fixed to.
            batch_size: sequences of an item; None for single sequences without the leading dimension.
            seed: of the order; the manifest's when None.
            drop_last: leave out the end that does not fill an item on every rank; otherwise the last item is shorter.
            keep_rest: leave nothing out: the last item of some ranks has a sequence more, or they yield an item more than others.
            read_ahead: items that a thread makes while the loop is busy with those before; for loops without workers.
            root: where the shards are, if not where the manifest says.
            store: where `shards` of that folder was copied to, and a cache of this machine: `ShardStore("s3://bucket/prefix", "/nvme")`.

        Raises:
            InputError, CorruptArtefactError: as `load_manifest`.
            RecipeError: sequence_length does not divide block_tokens, or would cut examples that were packed into windows; or the
                manifest is materialized, in the order of another seed.
            MismatchError: the manifest continues another one, which was read in another sequence length or seed.
        """
        super().__init__()
        assert 0 <= rank < world_size and (batch_size is None or batch_size > 0) and not (drop_last and keep_rest)
        assert read_ahead >= 0
        self.manifest: Manifest = load_manifest(Path(path))
        self._root = self.manifest.root_path if root is None else Path(root)
        self._store = store
        self._length = sequence_length or self.manifest.default_sequence_length
        self._order = order_of(self.manifest, sequence_length=self._length, seed=seed)
        self._seed = self.manifest.seed if seed is None else seed
        self._batch, self._single = batch_size or 1, batch_size is None
        self._rank, self._world, self._drop_last, self._keep_rest = rank, world_size, drop_last, keep_rest
        self._dtype = np.result_type(*distinct(self.manifest.parts, "dtype"))
        self._read_ahead = read_ahead
        self._start = self._items_before = 0
        self._worker_items = 0
        self._yielded = 0
        # Workers have copies of this object. What one of them writes here is seen by all.
        self._workers_read = torch.zeros(1, dtype=torch.uint8).share_memory_()
        self._counting_BT = torch.empty(0, self._length, dtype=torch.int64)

    @property
    def num_sequences(self) -> int:
        """Sequences of the whole run over all ranks."""
        return self._order.num_sequences

    def num_items(self) -> int:
        """Items this rank yields from where it starts, over all workers."""
        rounds, rest = divmod(self._num_to_read(), self._batch * self._world)
        return rounds + (rest > self._rank)

    def num_rounds(self) -> int:
        """Items of the rank that yields most; with an uneven end (`keep_rest`) some ranks yield one less."""
        return -(-self._num_to_read() // (self._batch * self._world))

    def __len__(self) -> int:
        """Items of the whole run: those before where it starts, on however many ranks they were read, and those after."""
        return self._items_before + self.num_items()

    def _num_to_read(self) -> int:
        return max(self.num_sequences - self.num_left_out() - self._start, 0)

    def num_left_out(self) -> int:
        """Sequences at the end of the run that no rank yields."""
        left = max(self.num_sequences - self._start, 0)
        return 0 if self._keep_rest else left % (self._batch * self._world if self._drop_last else self._world)

    def __iter__(self) -> Iterator[Item]:
        """Yield this rank's items, or this worker's share of them, from the loaded state on.

        Raises:
            CorruptArtefactError: a shard is missing or not what the manifest recorded.
        """
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info is not None else (0, 1)
        self._workers_read.fill_(info is not None)
        if self._rank == worker == 0:
            self._warn_of_what_is_left_out()
            self._warn_of_ranks_that_read_the_same()
        first = self._worker_items
        self._yielded = first
        # Item i is made by worker i mod n, and a DataLoader asks its workers in turn: that gives back the order of no workers.
        numbers = range(worker + first * num_workers, self.num_items(), num_workers)
        items = self._made(numbers, num_workers=num_workers)
        for item in read_ahead(items, depth=self._read_ahead) if self._read_ahead else items:
            self._yielded += 1
            yield item
        if info is None:
            self._yielded = self.num_rounds()

    def _warn_of_what_is_left_out(self) -> None:
        if num_left_out := self.num_left_out():
            whole = f"{self._world} ranks" + (f" of {self._batch} sequences each" if self._drop_last else "")
            remedy = "; keep_rest=True keeps them, with an uneven end"
            warnings.warn(
                f"{self.manifest.path}: the last {num_left_out} of {self.num_sequences} sequences do not divide over {whole} and "
                f"are left out{remedy}",
                stacklevel=3,
            )

    def _warn_of_ranks_that_read_the_same(self) -> None:
        num_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if self._world == 1 < num_ranks:
            problem = f"each of {num_ranks} ranks that iterates it reads all of it"
            warnings.warn(f"{self.manifest.path}: {problem}; give rank and world_size to read it once", stacklevel=3)

    def _made(self, numbers: range, *, num_workers: int) -> Iterator[Item]:
        """This rank's items of these numbers, counted from where it starts."""
        # Planning takes K numbers for each window up to the last position, and of many ranks each needs few positions of a window.
        planned = min(_PLANNED_SEQUENCES, _PLANNED_NUMBERS // (self._world * num_workers * len(self.manifest.sources)))
        per_plan = max(1, planned // self._batch)
        opened = lru_cache(maxsize=max_open_shards())(self._open)
        for begin in range(0, len(numbers), per_plan):
            positions = [self._positions(number) for number in numbers[begin : begin + per_plan]]
            bounds = np.cumsum([0, *map(len, positions)]).tolist()
            located = self._order.locate(np.concatenate(positions))
            for start, stop in pairwise(bounds):
                item = self._read(located, start, stop, opened=opened)
                yield {name: values[0] for name, values in item.items()} if self._single else item

    def _positions(self, item: int) -> Int64s:
        """Positions in the global order of one of this rank's items, shape (B,)."""
        # Interleaved, not in runs: a step of all ranks is one run of the global order, so it does not depend on their number.
        first = self._start + item * self._batch * self._world + self._rank
        stop = min(first + self._batch * self._world, self.num_sequences - self.num_left_out())
        return np.arange(first, stop, self._world)

    def _read(self, located: Located, start: int, stop: int, *, opened: _Opened) -> Item:
        shape = (stop - start, self._length)
        tokens_BS = np.empty((shape[0], shape[1] + 1), self._dtype)
        has_examples = self.manifest.has_masks
        mask_BT, starts_BT = (np.ones(shape, np.uint8), np.zeros(shape, np.uint8)) if has_examples else (None, None)
        chosen = (located.part_N, located.block_N, located.within_N)
        places = list(zip(*(values[start:stop].tolist() for values in chosen), strict=True))
        if self._store is not None:
            opened = self._fetched(opened, places)
        # Most of the time of reading goes into this loop, so it does no more than it must.
        for row, (part, block, within) in enumerate(places):
            (tokens, mask, starts), _ = opened(part)
            tokens_BS[row] = tokens[block, within]
            if mask is not None and starts is not None and mask_BT is not None and starts_BT is not None:
                mask_BT[row], starts_BT[row] = mask[block, within, 1:], starts[block, within, :-1]
        # Tokens are unsigned on disk: -100 fits in only after they are widened.
        labels_BT = tokens_BS[:, 1:].astype(np.int64)
        num_labels_B = located.num_labels_N[start:stop]
        for row in np.flatnonzero(num_labels_B < self._length).tolist():
            labels_BT[row, num_labels_B[row] :] = IGNORED_LABEL
        if mask_BT is not None:
            np.copyto(labels_BT, IGNORED_LABEL, where=mask_BT == 0)
        return {
            "tokens": torch.from_numpy(tokens_BS[:, :-1].astype(np.int64)),
            "positions": self._plain_positions(shape[0])
            if starts_BT is None
            else torch.from_numpy(restarting_positions(starts_BT)),
            "labels": torch.from_numpy(labels_BT),
            "source": torch.from_numpy(self._sources(located, start, stop, opened=opened)),
        }

    def _sources(self, located: Located, start: int, stop: int, *, opened: _Opened) -> Int64s:
        if not self.manifest.sequence_sources:
            return located.source_N[start:stop].copy()  # a view would keep the whole plan alive
        places = zip(located.part_N[start:stop].tolist(), located.block_N[start:stop].tolist(), strict=True)
        return np.array([int(opened(part).tag_digits_ND[block].tobytes()) for part, block in places], np.int64)

    def _plain_positions(self, num_sequences: int) -> torch.Tensor:
        # One row stands for all sequences, and PyTorch lets nobody write into it, so that items can share it too: to make another for
        # each would take 5% of the time of an item of 64 x 512 tokens. A single sequence has its own.
        if num_sequences == 1 or len(self._counting_BT) != num_sequences:
            self._counting_BT = torch.arange(self._length).expand(num_sequences, self._length)
        return self._counting_BT

    def _open(self, number: int) -> _OpenPart:
        part, is_materialized = self.manifest.parts[number], bool(self.manifest.sequence_sources)
        if self._store is not None:
            window = is_materialized and is_on_one_machine(self._world)
            views = self.manifest.sequences(part, store=self._store, root=self._root, length=self._length, window=window)
            return _OpenPart(views, _NO_TAGS)
        shard = self.manifest.open(part, root=self._root)
        tags_ND = shard.tag_digits_ND() if is_materialized and isinstance(shard, StridedShard) else _NO_TAGS
        return _OpenPart(shard.sequences(self._length), tags_ND)

    def _fetched(self, opened: _Opened, places: list[tuple[int, int, int]]) -> _Opened:
        fetched = Fetched(lambda part: opened(part).views, places)
        return lambda part: _OpenPart(fetched(part), fetched.tags.get(part, _NO_TAGS))

    def state_after(self, num_items: int) -> dict[str, Any]:
        """JSON-able state for when every rank has consumed `num_items` items of the latest iteration; the same on every rank."""
        # A last item may be shorter: its missing sequences, and those that no rank yields, are still to come on other ranks.
        read = min(num_items * self._batch * self._world, self._num_to_read())
        return {**self._identity(), "position": self._start + read, "items": self._items_before + num_items}

    def state_dict(self) -> dict[str, Any]:
        """State after the items that this object has yielded. In a DataLoader's worker it is that worker's own.

        Raises:
            MismatchError: workers of a DataLoader yielded them, and this object cannot know how many have come out.
        """
        info = get_worker_info()
        if info is not None:
            shape = {"batch_size": self._batch, "world_size": self._world, "num_workers": info.num_workers, "worker": info.id}
            start = {"position": self._start, "items": self._items_before}
            return {**self._identity(), **start, "worker_items": self._yielded, **shape}
        if self._workers_read:
            problem = "its items are read by workers of a DataLoader, and how many have come out of it is not known here"
            remedy = "use ManifestLoader and its state_dict, or state_after(items consumed)"
            raise MismatchError(self.manifest.path, problem, remedy)
        return self.state_after(self._yielded)

    def _identity(self) -> dict[str, Any]:
        return {"manifest": self.manifest.sha256, "sequence_length": self._length, "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration where `state` was taken, on any number of ranks and any batch size.

        Raises:
            MismatchError: the state is of another manifest, sequence length or seed, or of a DataLoader worker and this is not the
                same worker.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                problem = f"the loader state's {name} is {state.get(name)!r}, here it is {value!r}"
                remedy = "resume with what the state was saved with, or start from the beginning"
                raise MismatchError(self.manifest.path, problem, remedy)
        info = get_worker_info()
        if "worker_items" in state:
            here = {
                "batch_size": self._batch,
                "world_size": self._world,
                "num_workers": info.num_workers if info else 0,
                "worker": info.id if info else None,
            }
            changed = [f"{name} {state.get(name)}, here {value}" for name, value in here.items() if state.get(name) != value]
            if changed:
                problem = f"the loader state is that of a DataLoader worker with {'; '.join(changed)}"
                remedy = "keep these, or save `state_after(items consumed)`, which resumes anywhere"
                raise MismatchError(self.manifest.path, problem, remedy)
        self._start, self._items_before = int(state["position"]), int(state.get("items", 0))
        self._worker_items = int(state.get("worker_items", 0))
        self._yielded = self._worker_items
        if info is None:
            self._workers_read.fill_(False)

    def set_epoch(self, epoch: int) -> None:  # noqa: ARG002
        """Accelerate's loaders call it before they read. A manifest has no epochs to set, but it can tell that they do.

        Raises:
            MismatchError: they would divide among the ranks what is one rank's share already, and most of it would be read by nobody.
        """
        if self._world > 1:
            problem = f"Accelerate would divide the items of rank {self._rank} of {self._world} over the ranks a second time"
            remedy = "give `prepare` a ManifestLoader, which it leaves alone, or no loader"
            raise MismatchError(self.manifest.path, problem, remedy)


class ManifestLoader(DataLoader[Item]):
    """A `DataLoader` over a `ManifestDataset` whose state is what the training loop has consumed, whatever workers have read ahead.

    The order is that of the dataset for every number of workers, and the state resumes on any number of ranks and workers. Trainers
    that save and load the state of loaders (Lightning, Accelerate's `save_state`) do so with this one.
    """

    # Accelerate asks for both. It would send one rank's items to all, or take every rank's own apart again; and it saves no other state.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

    def __init__(
        self,
        dataset: ManifestDataset,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        multiprocessing_context: Any = None,
    ) -> None:
        """Items are those of the dataset, which makes the batches.

        Args:
            collate_fn: applied to each item, in the workers; for example `transformers_inputs`.
            num_workers, pin_memory, prefetch_factor, multiprocessing_context: as for `DataLoader`.
        """
        super().__init__(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            multiprocessing_context=multiprocessing_context,
        )
        self._manifest_dataset = dataset
        self._consumed = 0

    def __len__(self) -> int:
        """Items of the whole run, also after a state was loaded: trainers count on from where they were."""
        return len(self._manifest_dataset)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The items from the loaded state on, or from the beginning."""
        self._consumed = 0
        for item in super().__iter__():
            self._consumed += 1
            yield item
        self._consumed = self._manifest_dataset.num_rounds()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state after the items that the latest iteration has given out; the same on every rank."""
        return self._manifest_dataset.state_after(self._consumed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration where `state` was taken; raises as that of the dataset."""
        self._manifest_dataset.load_state_dict(state)
        self._consumed = 0
