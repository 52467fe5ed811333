"""The production loader: iterates a manifest from PyTorch, on any number of ranks and workers, resumable on any other number."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from fastmix_data.arrays import Int64s
from fastmix_data.errors import MismatchError
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.order import Located, ManifestOrder
from fastmix_data.shards.examples import restarting_positions
from fastmix_data.shards.shard_format import SequenceViews

IGNORED_LABEL = -100
_PLANNED_SEQUENCES = 4096
_PLANNED_NUMBERS = 1 << 26
Item = dict[str, torch.Tensor]


class ManifestDataset(IterableDataset[Item]):
    """One pass over a manifest, which is the whole run: repeats are part of it.

    Items are `{"tokens": int64 (L,), "positions": int64 (L,), "labels": int64 (L,), "source": int64 ()}`; with `batch_size` B every
    item is a batch and each tensor has a leading dimension B. Labels are the next tokens, already shifted, and -100 where there is
    none (padding) or where it carries no loss. Positions count from 0, and begin anew with each example of a source with a mask: as
    `position_ids` they tell a model which tokens may attend to each other. Sources are numbered as in `manifest.sources`.

    All ranks yield equal numbers of items, and equal numbers of sequences in each: a loop in which ranks wait for each other ends. The
    last sequences, fewer than there are ranks, are left out and warned of; `keep_rest` gives them to the first ranks.

    The global order is fixed by the manifest, the sequence length and the seed. At every step the R ranks together read the next
    R * B positions; rank r reads positions r, r + R, ... of them, so global batches do not depend on R as long as R * B does not
    change. Workers take a rank's items in turn (worker i of n the items i, i + n, ...), which is the order in which a `DataLoader`
    asks for them: with `DataLoader(dataset, batch_size=None, num_workers=n)` the order is that of no workers for every n. If
    batches are left to the DataLoader instead, each is made of the items of one worker: deterministic, but other batches for each n.

    Iteration starts at the loaded state, or at the beginning. `state_dict` counts what this object's latest iterator has yielded;
    items that DataLoader workers yielded are known to the training loop only, which asks `state_after(number of items)`.
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
        root: str | Path | None = None,
    ) -> None:
        """Read the manifest; shards are mapped when first needed.

        Args:
            path: the manifest's folder or `manifest.json`.
            sequence_length: L, divides the manifest's block_tokens, which is the default.
            batch_size: sequences of an item; None for single sequences without the leading dimension.
            seed: of the order; the manifest's when None.
            drop_last: leave out the end that does not fill an item on every rank; otherwise the last item is shorter.
            keep_rest: leave nothing out: the last item of some ranks has a sequence more, or they yield an item more than others.
            root: where the shards are, if not where the manifest says.

        Raises:
            InputError, CorruptArtefactError: as `load_manifest`.
            RecipeError: sequence_length does not divide block_tokens, or would cut examples that were packed into windows.
        """
        super().__init__()
        assert 0 <= rank < world_size and (batch_size is None or batch_size > 0) and not (drop_last and keep_rest)
        self.manifest: Manifest = load_manifest(Path(path))
        self._root = self.manifest.root_path if root is None else Path(root)
        self._length = sequence_length or self.manifest.block_tokens
        self._order = ManifestOrder(self.manifest, sequence_length=self._length, seed=seed)
        self._seed = self.manifest.seed if seed is None else seed
        self._batch, self._single = batch_size or 1, batch_size is None
        self._rank, self._world, self._drop_last, self._keep_rest = rank, world_size, drop_last, keep_rest
        self._dtype = np.result_type(*{part.dtype for part in self.manifest.parts})
        self._start = 0
        self._worker_items = 0
        self._yielded = 0
        self._counting_BT = torch.empty(0, self._length, dtype=torch.int64)
        self._views: dict[int, SequenceViews] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Memory maps stay behind: a spawned worker opens its own."""
        return {**self.__dict__, "_views": {}}

    @property
    def num_sequences(self) -> int:
        """Sequences of the whole run over all ranks."""
        return self._order.num_sequences

    def num_items(self) -> int:
        """Items this rank yields from where it starts, over all workers."""
        left = max(self.num_sequences - self.num_left_out() - self._start, 0)
        rounds, rest = divmod(left, self._batch * self._world)
        return rounds + (rest > self._rank)

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
        first = self._worker_items
        self._yielded = first
        # Item i is made by worker i mod n, and a DataLoader asks its workers in turn: that gives back the order of no workers.
        items = range(worker + first * num_workers, self.num_items(), num_workers)
        if self._rank == worker == 0 and (num_left_out := self.num_left_out()):
            whole = f"{self._world} ranks" + (f" of {self._batch} sequences each" if self._drop_last else "")
            remedy = "; keep_rest=True keeps them, with an uneven end"
            warnings.warn(
                f"{self.manifest.path}: the last {num_left_out} of {self.num_sequences} sequences do not divide over {whole} and "
                f"are left out{remedy}",
                stacklevel=2,
            )
        # Planning takes K numbers for each window up to the last position, and of many ranks each needs few positions of a window.
        planned = min(_PLANNED_SEQUENCES, _PLANNED_NUMBERS // (self._world * num_workers * len(self.manifest.sources)))
        per_plan = max(1, planned // self._batch)
        for begin in range(0, len(items), per_plan):
            positions = [self._positions(item) for item in items[begin : begin + per_plan]]
            bounds = np.cumsum([0, *map(len, positions)]).tolist()
            located = self._order.locate(np.concatenate(positions))
            for start, stop in pairwise(bounds):
                item = self._read(located, start, stop)
                self._yielded += 1
                yield {name: values[0] for name, values in item.items()} if self._single else item

    def _positions(self, item: int) -> Int64s:
        """Positions in the global order of one of this rank's items, shape (B,)."""
        # Interleaved, not in runs: a step of all ranks is one run of the global order, so it does not depend on their number.
        first = self._start + item * self._batch * self._world + self._rank
        stop = min(first + self._batch * self._world, self.num_sequences - self.num_left_out())
        return np.arange(first, stop, self._world)

    def _read(self, located: Located, start: int, stop: int) -> Item:
        shape = (stop - start, self._length)
        tokens_BS = np.empty((shape[0], shape[1] + 1), self._dtype)
        has_examples = self.manifest.example_tokens is not None
        mask_BT, starts_BT = (np.ones(shape, np.uint8), np.zeros(shape, np.uint8)) if has_examples else (None, None)
        short: list[tuple[int, int]] = []
        chosen = (located.part_N, located.block_N, located.within_N, located.num_labels_N)
        for row, (part, block, within, num_labels) in enumerate(
            zip(*(values[start:stop].tolist() for values in chosen), strict=True)
        ):
            tokens, mask, starts = self._views.get(part) or self._open(part)
            tokens_BS[row] = tokens[block, within]
            if num_labels < self._length:
                short.append((row, num_labels))
            if mask is not None and starts is not None and mask_BT is not None and starts_BT is not None:
                mask_BT[row], starts_BT[row] = mask[block, within, 1:], starts[block, within, :-1]
        # Tokens are unsigned on disk: -100 fits in only after they are widened.
        labels_BT = tokens_BS[:, 1:].astype(np.int64)
        for row, num_labels in short:
            labels_BT[row, num_labels:] = IGNORED_LABEL
        if mask_BT is not None:
            np.copyto(labels_BT, IGNORED_LABEL, where=mask_BT == 0)
        return {
            "tokens": torch.from_numpy(tokens_BS[:, :-1].astype(np.int64)),
            "positions": self._plain_positions(shape[0])
            if starts_BT is None
            else torch.from_numpy(restarting_positions(starts_BT)),
            "labels": torch.from_numpy(labels_BT),
            "source": torch.from_numpy(located.source_N[start:stop].copy()),  # a view would keep the whole plan alive
        }

    def _plain_positions(self, num_sequences: int) -> torch.Tensor:
        # One row stands for all sequences, and PyTorch lets nobody write into it, so that items can share it too: to make another for
        # each would take 5% of the time of an item of 64 x 512 tokens. A single sequence has its own.
        if num_sequences == 1 or len(self._counting_BT) != num_sequences:
            self._counting_BT = torch.arange(self._length).expand(num_sequences, self._length)
        return self._counting_BT

    def _open(self, number: int) -> SequenceViews:
        shard = self.manifest.open(self.manifest.parts[number], root=self._root)
        self._views[number] = shard.sequences(self._length)
        return self._views[number]

    def state_after(self, num_items: int) -> dict[str, Any]:
        """JSON-able state for when every rank has consumed `num_items` items of the latest iteration; the same on every rank."""
        position = min(self._start + num_items * self._batch * self._world, self.num_sequences)
        return {**self._identity(), "position": position}

    def state_dict(self) -> dict[str, Any]:
        """State after the items that this object has yielded. In a DataLoader's worker it is that worker's own."""
        info = get_worker_info()
        if info is None:
            return self.state_after(self._yielded)
        shape = {"batch_size": self._batch, "world_size": self._world, "num_workers": info.num_workers, "worker": info.id}
        return {**self._identity(), "position": self._start, "worker_items": self._yielded, **shape}

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
        items = int(state.get("worker_items", 0))
        if "worker_items" in state:
            info = get_worker_info()
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
        self._start, self._worker_items, self._yielded = int(state["position"]), items, items
