from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from rows_without_files import BLOCK, rows_without_files

from fastmix_data.manifest.block_epochs import SourceBlocks


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(1, 7), st.integers(0, 5000), st.integers(0, 99))
def test_ranges_hold_exactly_the_realised_tokens_and_every_block_once_per_pass(
    partitions: list[int], shard_blocks: int, wanted: int, seed: int
) -> None:
    rows = rows_without_files(partitions, shard_blocks)
    source = SourceBlocks(rows, block_tokens=BLOCK, index=0)
    tokens = source.floor(wanted)
    ranges = list(source.ranges(tokens, seed=seed))
    counted = 0
    times: Counter[tuple[str, int]] = Counter()
    for row, start, stop, repeats, _ in ranges:
        assert 0 <= start < stop <= row.num_blocks
        counted += repeats * (min(stop * BLOCK, row.num_tokens) - start * BLOCK)
        times.update({(row.path, block): repeats for block in range(start, stop)})
    assert counted == tokens and 0 <= wanted - tokens < BLOCK
    epochs = tokens // source.num_tokens
    assert set(times.values()) <= {epochs, epochs + 1}
    partial = [part for part in ranges if part.partial]
    assert len({part.row.path for part in partial}) == len(partial)  # one contiguous range per shard


@given(st.lists(st.integers(40, 300), min_size=1, max_size=6), st.integers(2, 7), st.data())
def test_a_partial_epoch_takes_its_share_of_every_shard_and_no_short_block_before_it_has_to(
    partitions: list[int], shard_blocks: int, data: st.DataObject
) -> None:
    rows = rows_without_files(partitions, shard_blocks)
    regular = {row.path: row.num_tokens // BLOCK for row in rows}
    wanted = data.draw(st.integers(1, sum(regular.values()))) * BLOCK
    taken = dict.fromkeys(regular, 0)
    for row, start, stop, _, _ in SourceBlocks(rows, block_tokens=BLOCK, index=0).ranges(wanted, seed=3):
        taken[row.path] += stop - start
        if wanted < sum(row.num_tokens for row in rows):
            assert stop * BLOCK <= row.num_tokens
    for path, blocks in regular.items():
        assert abs(taken[path] - wanted / BLOCK * blocks / sum(regular.values())) < 1
