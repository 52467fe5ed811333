"""The training stream of the corpus in this folder. It needs `datasets` and nothing of fastmix.

    from interleave import training_stream

    stream = training_stream()                 # map-style: `datasets` keeps a copy of the corpus in its cache
    stream = training_stream(streaming=True)   # reads the Parquet files, makes no copy, shuffles within a buffer
    loader = torch.utils.data.DataLoader(stream, batch_size=8)

Items are `input_ids`, `labels` and, where the corpus has examples, `position_ids`, each one token longer than a block. Models of
`transformers` shift labels themselves, so that the block's last token has its label too. In a loop of your own take
`input_ids[:, :-1]`, `position_ids[:, :-1]` and `labels[:, 1:]`. Labels are -100 where there is none or where it carries no loss.

The order is the manifest's own, of `order.npy`: every block as often as the manifest says, and the mixture in every stretch. Streams
cannot jump to a row. For them, and where a `stopping_strategy` is given, `interleave_datasets` draws which source comes next, with the
sources' shares as probabilities. Each source is then read as its passes one after another, whole ones first, each shuffled. The
strategy says when that ends:

    all_exhausted_without_replacement   when all are read, which is the default of streams. Every block comes as often as the manifest
                                        says, and shares are exact over the whole. A source that is through is drawn no more, so that
                                        the last blocks do not have the mixture. Where it does not stream it takes 0.1 ms a block.
    first_exhausted                     when the first is read. Shares are as asked for on average.
    all_exhausted                       when the last is read; those before begin anew, and their blocks come more often than the
                                        manifest's caps allow. Shares are as asked for on average.

Of a million blocks from six sources, the smallest 0.5%, the first source was through 0.4 to 2% before the end, and with all_exhausted
sources were read up to 2.6% too often. Shares were off by 0.06 points at most (three seeds).

With several workers or nodes `datasets` applies the strategy in each of them by itself.

    python interleave.py --strategy first_exhausted    # says what a run would hold
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets, load_dataset

FOLDER = Path(__file__).parent
EXACT, FIRST, ALL = "all_exhausted_without_replacement", "first_exhausted", "all_exhausted"
IGNORED_LABEL = -100
_BUFFER_ROWS = 1000


def training_stream(*, seed: int | None = None, stopping_strategy: str | None = None, streaming: bool = False) -> Any:
    """What a model is trained on, in the order of training: items of NumPy arrays, which loaders make into tensors.

    Args:
        seed: of drawing; the manifest's when None.
        stopping_strategy: of drawing; the manifest's order when None, but of streams.
    """
    blocks = ordered_blocks(seed=seed, stopping_strategy=stopping_strategy, streaming=streaming).with_format("numpy")
    if streaming:
        return blocks.map(training_item, remove_columns=blocks.column_names)
    return _Items(blocks)


class _Items:
    """A map-style data set. `with_transform` would hand its function lists of Python numbers."""

    def __init__(self, blocks: Dataset) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return training_item(self._blocks[index])


def training_item(block: dict[str, Any]) -> dict[str, np.ndarray]:
    """Labels and positions of a row of the Parquet files."""
    tokens_T = np.asarray(block["input_ids"], np.int64)
    labels_T = tokens_T.copy()
    labels_T[int(block["num_labels"]) + 1 :] = IGNORED_LABEL
    if "starts" not in block:
        return {"input_ids": tokens_T, "labels": labels_T}
    labels_T[~np.asarray(block["loss_mask"], bool)] = IGNORED_LABEL
    counting_T = np.arange(len(tokens_T))
    first_T = np.maximum.accumulate(np.where(np.asarray(block["starts"]) != 0, counting_T, 0))
    return {"input_ids": tokens_T, "labels": labels_T, "position_ids": counting_T - first_T}


def ordered_blocks(
    *, seed: int | None = None, stopping_strategy: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Rows as they are in the Parquet files, in the order of training."""
    plan = json.loads((FOLDER / "interleave.json").read_text())
    if stopping_strategy is None and not streaming:
        pools = [_blocks(pool) for source in plan["sources"] for pool in source["pools"]]
        return concatenate_datasets(pools).select(np.load(FOLDER / "order.npy"))
    seed = plan["seed"] if seed is None else seed
    sources = [_passes(source["pools"], seed=seed, streaming=streaming) for source in plan["sources"]]
    rows = [sum(pool["rows"] * pool["repeats"] for pool in source["pools"]) for source in plan["sources"]]
    shares = [count / sum(rows) for count in rows]
    return interleave_datasets(sources, probabilities=shares, seed=seed, stopping_strategy=stopping_strategy or EXACT)


def _blocks(pool: dict[str, Any], *, streaming: bool = False) -> Any:
    return load_dataset(str(FOLDER), pool["config"], split="train", streaming=streaming)


def _passes(pools: list[dict[str, Any]], *, seed: int, streaming: bool) -> Dataset | IterableDataset:
    passes: list[Any] = []
    for pool in pools:
        blocks = _blocks(pool, streaming=streaming)
        buffer = {"buffer_size": _BUFFER_ROWS} if streaming else {}
        passes += [blocks.shuffle(seed=seed + 1 + len(passes) + epoch, **buffer) for epoch in range(pool["repeats"])]
    return concatenate_datasets(passes)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Count what a run over this corpus would hold.")
    parser.add_argument("--strategy", choices=(EXACT, FIRST, ALL), help="draw; the manifest's order by default")
    parser.add_argument("--seed", type=int, help="of drawing; the manifest's by default")
    given = parser.parse_args()
    blocks = ordered_blocks(seed=given.seed, stopping_strategy=given.strategy)
    counts = Counter(blocks["source"])
    plan = json.loads((FOLDER / "interleave.json").read_text())
    print(f"{'source':32} {'blocks':>12} {'share':>8} {'of the manifest':>16}")
    for source in plan["sources"]:
        count, wanted = counts[source["name"]], sum(pool["rows"] * pool["repeats"] for pool in source["pools"])
        print(f"{source['name']:32} {count:12,} {count / len(blocks):8.2%} {count / wanted:16.4f}")


if __name__ == "__main__":
    _main()
