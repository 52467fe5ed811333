"""Which blocks of tokens that are there already are held out: there are no documents to choose by their text."""

from __future__ import annotations

from collections.abc import Iterator

from fastmix_data.permutation import derive_keys

# Runs are long, so that few documents are cut, and many, so that they are of all parts of a corpus that is sorted by something.
_BLOCKS_OF_A_RUN, _MOST_RUNS = 8, 32
_HELD_OUT_STREAM = 61


def held_out_runs(num_blocks: int, fraction: float) -> list[tuple[int, int]]:
    """First and past-the-last blocks of the runs that are held out: one at random in each of as many equal stretches.

    At least two blocks, for each half of a target wants one, and never all.

    >>> held_out_runs(10_000, 0.02)[:2], sum(stop - start for start, stop in held_out_runs(10_000, 0.02))
    ([(299, 307), (455, 463)], 200)
    """
    wanted = min(max(2, round(num_blocks * fraction)), num_blocks - 1) if fraction else 0
    num_runs = min(_MOST_RUNS, -(-wanted // _BLOCKS_OF_A_RUN))
    runs: list[tuple[int, int]] = []
    for run in range(num_runs):
        low, high = run * num_blocks // num_runs, (run + 1) * num_blocks // num_runs
        size = (run + 1) * wanted // num_runs - run * wanted // num_runs
        start = low + int(derive_keys(_HELD_OUT_STREAM, num_blocks, run)[0] % (high - low - size + 1))
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + size)
        else:
            runs.append((start, start + size))
    return runs


def split_blocks(start: int, stop: int, runs: list[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    """Blocks `start` to `stop` as stretches of one split each, given all runs that are held out."""
    at = start
    for first, last in runs:
        first, last = max(first, start), min(last, stop)
        if first >= last:
            continue
        if at < first:
            yield "train", at, first
        yield "valid", first, last
        at = last
    if at < stop:
        yield "train", at, stop
