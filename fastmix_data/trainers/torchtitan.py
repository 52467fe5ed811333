"""torchtitan's data loader over a manifest: the manifest's own order, epochs, labels and positions, where the shards lie.

    config.dataloader = ManifestDataLoader.Config(dataset_path="run/manifest")

in a function of a configuration registry; `fastmix export --to torchtitan` writes one that does so. Nothing is tokenized, so what
torchtitan does with text, and its tokenizer, is of no account for training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torchtitan.components.dataloader import ParallelAwareDataloader

from fastmix_data.loader import Item, ManifestDataset

_STATE_KEY = "fastmix"
Batch = tuple[dict[str, Any], Any]


class ManifestDataLoader(ParallelAwareDataloader):  # type: ignore[misc]
    """One pass over a manifest, which is the whole run; then torchtitan says that data has run out, and ends.

    Batches are `({"input": (B, L), "positions": (B, L)}, labels (B, L))` of int64; labels are the next tokens, and -100 where there is
    none or where it carries no loss. Positions begin anew with each example of a source with a mask, from which torchtitan makes
    the attention masks of its `varlen` and `flex` backends.

    All batches are full: the end of the run that does not fill one on every rank is left out, and warned of. The state is the place in
    the manifest's order. It is the same on all ranks, and loads on any other number of them, at any batch size. Of torchtitan's own
    settings `persistent_workers` is without effect, for there is one pass.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):  # type: ignore[misc]
        root: str | None = None
        """Folder that the manifest's shards lie under, if not where the manifest says. `dataset_path` is the manifest's."""

        seed: int | None = None
        """Of the order; the manifest's when None."""

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **_: Any
    ) -> None:
        """As torchtitan's trainer builds it; it hands over a tokenizer too, which is not used.

        Raises:
            FastmixError: as `ManifestDataset`; for one, seq_len has to divide the manifest's block_tokens.
        """
        self._blocks = ManifestDataset(
            config.dataset_path,
            sequence_length=seq_len,
            batch_size=local_batch_size,
            rank=dp_rank,
            world_size=dp_world_size,
            seed=config.seed,
            drop_last=True,
            root=config.root,
        )
        self._num_given = 0
        super().__init__(
            self._blocks,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            batch_size=None,
            collate_fn=_as_torchtitan_has_it,
            num_workers=config.num_workers,
            pin_memory=config.pin_memory,
            prefetch_factor=config.prefetch_factor,
            # Its own snapshots would be of a rank and its workers; below is a state that knows of neither.
            snapshot_every_n_steps=1 << 62,
        )

    def __iter__(self) -> Iterator[Batch]:
        """From the loaded state on, or from the beginning."""
        self._num_given = 0
        for batch in super().__iter__():
            self._num_given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """After the batches that were taken, whatever workers have read ahead."""
        return {_STATE_KEY: json.dumps(self._blocks.state_after(self._num_given))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after them. An empty state is none, as with torchtitan's own loaders.

        Raises:
            MismatchError: the state is of another manifest, sequence length or seed.
        """
        if state_dict:
            self._blocks.load_state_dict(json.loads(state_dict[_STATE_KEY]))
            self._num_given = 0


def _as_torchtitan_has_it(item: Item) -> Batch:
    return {"input": item["tokens"], "positions": item["positions"]}, item["labels"]
