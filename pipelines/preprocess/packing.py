"""Examples of which only part carries loss, packed whole into windows: training sequences that no example is cut by.

A window holds whole examples and, after them, padding. Best fit decreasing (Johnson et al., 1974) packs what is at hand: all held-out
examples of a partition, and its training examples in runs of two million tokens, so that memory does not grow with a partition.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from fastmix_data.arrays import Int64s, Mask, Starts, Tokens, UInt64s
from fastmix_data.permutation import permute
from fastmix_data.recipe.sources import OnLongExample
from fastmix_data.shards.shard_format import EXAMPLE_START, PADDING_START
from fastmix_data.tokens.encoding import EncodedDocuments
from pipelines.reading.bad_text import DocumentCounts

# Tokens of training examples that wait to be packed together. With 16 times as many the benchmark's sets fill no tenth of a percent more.
TOKENS_PACKED_AT_ONCE = 1 << 21


def fit_examples(
    encoded: EncodedDocuments, *, window_tokens: int, on_long: OnLongExample, counts: DocumentCounts
) -> tuple[EncodedDocuments, Int64s]:
    """Examples that fit a window and have a token to learn, and of which document each is, shape (num_examples,).

    An example's first token has none before it to be predicted from, so it does not count, and is left without loss.

    Args:
        counts: told what was cut or left out.
    """
    assert encoded.loss_mask is not None
    starts_D, lengths_D = encoded.starts_D, np.diff(encoded.ends_D, prepend=0)
    num_long = int(np.count_nonzero(lengths_D > window_tokens))
    if on_long == "split":
        counts.num_split += num_long
        pieces_D = -(-lengths_D // window_tokens)
    elif on_long == "truncate":
        counts.num_truncated += num_long
        pieces_D = np.ones_like(lengths_D)
    else:
        counts.num_skipped += num_long
        pieces_D = (lengths_D <= window_tokens).astype(np.int64)
    document_E = np.repeat(np.arange(len(lengths_D)), pieces_D)
    offset_E = (np.arange(len(document_E)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)) * window_tokens
    start_E, length_E = starts_D[document_E] + offset_E, np.minimum(lengths_D[document_E] - offset_E, window_tokens)
    # Largest of the mask from the second token of each on; the runs between examples, every other one, are not looked at.
    bounds = np.stack([start_E + 1, start_E + length_E], axis=1).ravel()
    learns_E = (length_E > 1) & (np.maximum.reduceat(np.append(encoded.loss_mask, 0), bounds)[::2] > 0)
    counts.num_without_loss += int(np.count_nonzero(~learns_E))
    if num_long == 0 and learns_E.all():
        return encoded, document_E
    document_E, offset_E, start_E, length_E = (part[learns_E] for part in (document_E, offset_E, start_E, length_E))
    chosen = _runs(start_E, length_E)
    num_prompt_tokens_E = np.clip(encoded.num_prompt_tokens_D[document_E] - offset_E, 0, length_E)
    fitted = EncodedDocuments(encoded.tokens[chosen], np.cumsum(length_E), num_prompt_tokens_E, encoded.loss_mask[chosen])
    return fitted, document_E


@dataclass(frozen=True)
class PackedExamples:
    """Whole windows of a stream.

    Attributes:
        tokens, loss_mask, starts: one value per position.
        order_E: number of each example among those that were given, in the order of the stream.
        start_E: where each begins, in the same order.
    """

    tokens: Tokens
    loss_mask: Mask
    starts: Starts
    order_E: Int64s
    start_E: Int64s


def pack_examples(
    encoded: EncodedDocuments, *, window_tokens: int, eos_id: int, key: UInt64s, min_windows: int = 1
) -> PackedExamples:
    """Pack examples of at most `window_tokens` tokens.

    Args:
        key: of the order of the windows, which best fit decreasing leaves in that of their longest examples.
        min_windows: 1 or 2; two windows where the examples would fit into one.
    """
    assert encoded.loss_mask is not None
    lengths_E = np.diff(encoded.ends_D, prepend=0)
    window_E = best_fit(lengths_E, window_tokens=window_tokens)
    num_windows = int(window_E.max()) + 1
    if num_windows < min_windows <= len(lengths_E):
        window_E, num_windows = np.arange(len(lengths_E)) % min_windows, min_windows
    # A part of a run, as half of the held-out data or the part of an epoch is, must be a fair sample of it: no window's place may tell
    # how long its examples are.
    window_E = permute(np.arange(num_windows), size=num_windows, key=key)[window_E]
    order_E = np.argsort(window_E, kind="stable")
    window_E, lengths_E = window_E[order_E], lengths_E[order_E]
    before_E = np.cumsum(lengths_E) - lengths_E
    filled_W = np.bincount(window_E, weights=lengths_E, minlength=num_windows).astype(np.int64)
    start_E = before_E + window_E * window_tokens - (np.cumsum(filled_W) - filled_W)[window_E]
    source, size = _runs(encoded.starts_D[order_E], lengths_E), num_windows * window_tokens
    gaps_E = np.diff(start_E, append=size) - lengths_E
    written = np.repeat(np.tile([True, False], len(lengths_E)), np.stack([lengths_E, gaps_E], axis=1).ravel())
    tokens = np.full(size, eos_id, encoded.tokens.dtype)
    loss_mask, starts = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    tokens[written], loss_mask[written] = encoded.tokens[source], encoded.loss_mask[source]
    # The token before it is another example's.
    loss_mask[start_E] = 0
    starts[start_E] = EXAMPLE_START
    short_W = np.flatnonzero(filled_W < window_tokens)
    starts[short_W * window_tokens + filled_W[short_W]] = PADDING_START
    return PackedExamples(tokens, loss_mask, starts, order_E, start_E)


def best_fit(lengths_E: Int64s, *, window_tokens: int) -> Int64s:
    """Window of each example, shape (num_examples,), numbered from 0: the longest first, each into the fullest window that has room.

    The time is that of sorting: examples of one length are placed together, as many as go into all windows of one size left.

    >>> best_fit(np.array([2, 5, 3, 4, 6]), window_tokens=10).tolist()
    [1, 1, 1, 0, 0]
    """
    order_E = np.argsort(-lengths_E, kind="stable")
    distinct, counts = np.unique(lengths_E, return_counts=True)
    room: list[int] = []  # what some window has left, ascending
    windows_of_room: dict[int, list[int]] = {}
    num_windows = 0
    placed: list[int] = []
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            at = bisect_left(room, length)
            if at < len(room):
                left = room.pop(at)
                windows = windows_of_room.pop(left)
            else:
                left = window_tokens
                num_new = -(-count // (left // length))
                windows = list(range(num_windows, num_windows + num_new))
                num_windows += num_new
            # A window that took one of these is the fullest with room for the next, so it takes all that it can before another does.
            each = left // length
            num_full, rest = divmod(min(count, each * len(windows)), each)
            placed += [window for window in windows[:num_full] for _ in range(each)] + windows[num_full : num_full + 1] * rest
            count -= num_full * each + rest
            for size, some in (
                (left - each * length, windows[:num_full]),
                (left - rest * length, windows[num_full : num_full + 1]),
                (left, windows[num_full + 1 :]),
            ):
                if some and size:
                    if size not in windows_of_room:
                        insort(room, size)
                    windows_of_room.setdefault(size, []).extend(some)
    window_E = np.empty(len(lengths_E), np.int64)
    window_E[order_E] = placed
    return window_E


def _runs(start_E: Int64s, length_E: Int64s) -> Int64s:
    """All positions of some runs, one run after the other."""
    before_E = np.cumsum(length_E) - length_E
    positions: Int64s = np.repeat(start_E - before_E, length_E) + np.arange(int(length_E.sum()))
    return positions
