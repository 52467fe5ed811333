from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from rows_without_files import BLOCK, rows_without_files

from fastmix_data.manifest.block_set import BlockSet, SourceShards
from fastmix_data.manifest.epoch_draws import EpochDraws, epoch_keys
from fastmix_data.manifest.source_stream import SourceStream
from fastmix_data.permutation import permute

PARTITIONS = st.lists(st.integers(1, 300), min_size=1, max_size=6)


def _stream(partitions: list[int], shard_blocks: int, seed: int = 3) -> SourceStream:
    shards = SourceShards(rows_without_files(partitions, shard_blocks), block_tokens=BLOCK)
    return SourceStream.fresh(shards, seed=seed, name="s")


def _blocks(blocks: BlockSet) -> list[tuple[int, int]]:
    ranges = zip(blocks.shard_R.tolist(), blocks.start_R.tolist(), blocks.stop_R.tolist(), strict=True)
    return [(shard, block) for shard, start, stop in ranges for block in range(start, stop)]


@given(PARTITIONS, st.integers(1, 7), st.lists(st.integers(0, 2500), min_size=1, max_size=5), st.integers(0, 99))
def test_amounts_taken_are_realised_exactly_and_no_block_comes_again_before_all_others(
    partitions: list[int], shard_blocks: int, wanted: list[int], seed: int
) -> None:
    stream = _stream(partitions, shard_blocks, seed)
    everything = set(_blocks(stream.shards.everything))
    times: Counter[tuple[int, int]] = Counter(dict.fromkeys(everything, 0))
    for asked in wanted:
        tokens = stream.floor(asked)
        assert 0 <= asked - tokens < BLOCK
        pools, stream = stream.take(tokens)
        assert sum(pool.num_tokens for pool in pools) == tokens
        for pool in pools:
            blocks = _blocks(pool.blocks)
            assert len(set(blocks)) == len(blocks)
            assert pool.num_tokens == pool.repeats * int(pool.blocks.num_tokens_R.sum())
            for _ in range(pool.repeats):
                assert {times[block] for block in blocks} == {min(times.values())}
                times.update(blocks)
                assert max(times.values()) - min(times.values()) <= 1
        assert set(_blocks(stream.rest)) == {block for block in everything if times[block] < max(times.values())}


@given(PARTITIONS.map(lambda sizes: [40 + size for size in sizes]), st.integers(2, 7), st.data())
def test_a_partial_epoch_takes_its_share_of_every_shard_and_no_short_block_before_it_has_to(
    partitions: list[int], shard_blocks: int, data: st.DataObject
) -> None:
    stream = _stream(partitions, shard_blocks)
    regular_S = stream.shards.num_tokens_S // BLOCK
    wanted = data.draw(st.integers(1, int(regular_S.sum()))) * BLOCK
    (pool,), _ = stream.take(wanted)
    assert len(set(pool.blocks.shard_R.tolist())) == len(pool.blocks.shard_R)  # one contiguous range per shard
    taken = Counter(shard for shard, _ in _blocks(pool.blocks))
    if wanted < stream.unique_tokens:
        assert all(block < regular_S[shard] for shard, block in _blocks(pool.blocks))
    for shard, blocks in enumerate(regular_S.tolist()):
        assert abs(taken[shard] - wanted / BLOCK * blocks / regular_S.sum()) < 1


@given(PARTITIONS, st.integers(1, 7), st.sampled_from([4, 8, 16]), st.integers(0, 9))
def test_tokens_of_the_first_draws_are_those_of_the_sequences_drawn(
    partitions: list[int], shard_blocks: int, length: int, epoch: int
) -> None:
    blocks = _stream(partitions, shard_blocks).shards.everything
    key = epoch_keys(3, 17, epoch)
    draws = EpochDraws(blocks, sequence_length=length, key=key)
    sequences = []
    for tokens, labels in zip(blocks.num_tokens_R.tolist(), blocks.num_labels_R.tolist(), strict=True):
        count = -(-labels // length)
        sequences += [length] * (count - 1) + [tokens - (count - 1) * length] * (count > 0)
    order = permute(range(len(sequences)), size=max(len(sequences), 1), key=key).tolist() if sequences else []
    total = 0
    for drawn, sequence in enumerate(order):
        assert draws.num_tokens(drawn) == total and draws.num_draws(total) == drawn
        total += sequences[sequence]
    assert draws.num_sequences == len(sequences) and draws.num_tokens(len(sequences)) == blocks.num_tokens


@given(st.integers(0, 10**6), st.integers(1, 7))
def test_a_source_of_more_tokens_than_products_of_int64_hold_is_cut_like_any_other(tokens: int, share: int) -> None:
    row = rows_without_files([BLOCK * 4], 4)[0]
    num_blocks = 10**10
    object.__setattr__(row, "num_blocks", num_blocks)
    object.__setattr__(row, "num_tokens", num_blocks * BLOCK)
    object.__setattr__(row, "num_labels", num_blocks * BLOCK)
    stream = SourceStream.fresh(SourceShards([row, row], block_tokens=BLOCK), seed=0, name="s")
    (pool,), _ = stream.take(stream.floor(2 * num_blocks * BLOCK * share // 8 + tokens))
    assert abs(int(pool.blocks.num_tokens_R[0] - pool.blocks.num_tokens_R[1])) <= BLOCK
