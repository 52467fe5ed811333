"""Where examples lie in sources with a mask, read off `starts.npy`: positions that begin anew with each, and the padding after them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastmix_data.arrays import Bools, Int64s, Starts
from fastmix_data.shards.shard_format import PADDING_START


def restarting_positions(begins_BT: Bools | Starts) -> Int64s:
    """Position of each token within its example, shape (B, T): 0 at the beginning of a sequence and wherever `begins_BT` is not 0.

    >>> restarting_positions(np.array([[0, 0, 1, 0, 2]])).tolist()
    [[0, 1, 0, 1, 0]]
    """
    batch, length = begins_BT.shape
    is_first_BT = begins_BT != 0
    is_first_BT[:, 0] = True
    first_E = np.flatnonzero(is_first_BT)
    # As runs, not token by token with a running maximum, which takes twice the time.
    first: Int64s = np.repeat(first_E, np.diff(first_E, append=batch * length))
    return np.subtract(_counting(batch * length), first, out=first).reshape(batch, length)


@lru_cache(maxsize=4)
def _counting(size: int) -> Int64s:
    counting = np.arange(size)
    counting.flags.writeable = False
    return counting


def is_padding(starts_T: Starts) -> Bools:
    """Which tokens of a run are padding.

    >>> is_padding(np.array([1, 0, 2, 0, 1, 0], np.uint8)).tolist()
    [False, False, True, True, False, False]
    """
    first_E = np.concatenate([[0], np.flatnonzero(starts_T)])
    padding_T: Bools = np.repeat(starts_T[first_E] == PADDING_START, np.diff(first_E, append=len(starts_T)))
    return padding_T


def count_padding(starts_T: Starts) -> int:
    """Tokens of a run that are padding."""
    return int(np.count_nonzero(is_padding(starts_T)))
