import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmix_data.errors import CorruptArtefactError
from fastmix_data.shards.shard_format import ShardLayout, StridedShard, cut_shard, encode_shard, token_dtype, write_shard
from fastmix_data.shards.shard_writer import ShardNames, ShardStream

EOS = 7


def _write(path, *, num_blocks=3, block_tokens=20, vocab_size=1000, has_mask=False, seed=0):
    layout = ShardLayout(block_tokens, token_dtype(vocab_size), has_mask)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, num_blocks * block_tokens + 1).astype(layout.dtype)
    mask, starts = (rng.integers(0, values, len(tokens)).astype(np.uint8) if has_mask else None for values in (2, 3))
    encoded = encode_shard(tokens, layout=layout, key_prefix="a-", num_blocks=num_blocks, loss_mask=mask, starts=starts)
    write_shard(path, encoded, layout=layout)
    return layout, tokens, (mask, starts)


@settings(max_examples=30, deadline=None)
@given(
    num_blocks=st.integers(1, 12),
    block_tokens=st.integers(1, 300),
    vocab_size=st.sampled_from([300, 100_000]),
    has_mask=st.booleans(),
)
def test_webdataset_reads_what_the_strided_view_shows(tmp_path_factory, num_blocks, block_tokens, vocab_size, has_mask):
    path = tmp_path_factory.mktemp("shard") / "a.tar"
    layout, tokens, (mask, starts) = _write(
        path, num_blocks=num_blocks, block_tokens=block_tokens, vocab_size=vocab_size, has_mask=has_mask
    )
    shard = StridedShard(path, layout)
    samples = list(wds.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [shard.key(block) for block in range(num_blocks)]
    assert np.array_equal(np.stack([sample["tokens.npy"] for sample in samples]), shard.tokens_NT)
    expected = np.lib.stride_tricks.sliding_window_view(tokens, block_tokens + 1)[::block_tokens]
    assert np.array_equal(shard.tokens_NT, expected)
    if has_mask:
        for member, values, shown in (("loss_mask", mask, shard.loss_mask_NT), ("starts", starts, shard.starts_NT)):
            assert np.array_equal(np.stack([sample[f"{member}.npy"] for sample in samples]), shown)
            assert np.array_equal(shown, np.lib.stride_tricks.sliding_window_view(values, block_tokens + 1)[::block_tokens])


def test_equal_tokens_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        _write(tmp_path / name, has_mask=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_layout_is_detected_from_the_file(tmp_path):
    layout, _, _ = _write(tmp_path / "a.tar", has_mask=True)
    found = StridedShard.detect(tmp_path / "a.tar").layout
    assert (found.block_tokens, found.dtype, found.has_mask) == (layout.block_tokens, layout.dtype, True)


def test_a_cut_shard_holds_the_chosen_blocks(tmp_path):
    layout, _, _ = _write(tmp_path / "a.tar", num_blocks=5, has_mask=True)
    whole = StridedShard(tmp_path / "a.tar", layout)
    (tmp_path / "b.tar").write_bytes(cut_shard(whole, start=1, stop=4))
    samples = list(wds.WebDataset(str(tmp_path / "b.tar"), shardshuffle=False).decode())
    for member, values in (("tokens", whole.tokens_NT), ("loss_mask", whole.loss_mask_NT), ("starts", whole.starts_NT)):
        assert np.array_equal(np.stack([sample[f"{member}.npy"] for sample in samples]), values[1:4])


def test_a_truncated_shard_is_refused(tmp_path):
    layout, _, _ = _write(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    for size in (0, 700, len(content) - 1):
        (tmp_path / "a.tar").write_bytes(content[:size])
        with pytest.raises(CorruptArtefactError):
            StridedShard(tmp_path / "a.tar", layout)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=30),
    block_tokens=st.integers(4, 32),
    max_blocks=st.integers(1, 4),
    has_mask=st.booleans(),
    batch=st.integers(1, 5),
)
def test_a_stream_loses_no_token_and_labels_run_across_shards(
    tmp_path_factory, lengths, block_tokens, max_blocks, has_mask, batch
):
    root = tmp_path_factory.mktemp("stream")
    layout = ShardLayout(block_tokens, np.dtype("<u2"), has_mask)
    rng = np.random.default_rng(0)
    documents = [rng.integers(10, 999, length).astype("<u2") for length in lengths]
    masks = [rng.integers(0, 2, length).astype(np.uint8) for length in lengths]
    kinds = [2 if number % 3 == 2 else 1 for number in range(len(lengths))]  # every third one stands for padding
    begins = [np.eye(1, length, dtype=np.uint8)[0] * kind for length, kind in zip(lengths, kinds, strict=True)]
    names = ShardNames(root, "src", "train", 3)
    stream = ShardStream(names, layout=layout, max_shard_bytes=layout.num_bytes(max_blocks), eos_id=EOS)
    places = []
    for start in range(0, len(documents), batch):
        here = documents[start : start + batch]
        starts = np.cumsum([0, *map(len, here)])[:-1]
        mask, kind = (np.concatenate(part[start : start + batch]) if has_mask else None for part in (masks, begins))
        places += zip(*stream.append(np.concatenate(here), starts_D=starts, loss_mask=mask, starts=kind), strict=True)
    rows = stream.close()

    whole, whole_mask = np.concatenate(documents), np.concatenate(masks)
    shards = [StridedShard(root / row.path, layout) for row in rows]
    owned = np.concatenate([shard.tokens_NT[:, :-1].ravel() for shard in shards])
    assert np.array_equal(owned[: len(whole)], whole)
    assert (owned[len(whole) :] == EOS).all() and len(owned) - len(whole) < block_tokens
    labels = np.concatenate([shard.tokens_NT[:, 1:].ravel() for shard in shards])
    assert np.array_equal(labels[: len(whole) - 1], whole[1:])
    assert sum(row.num_tokens for row in rows) == len(whole)
    assert sum(row.num_labels for row in rows) == len(whole) - 1
    assert all(row.num_labels == row.num_tokens == row.num_blocks * block_tokens for row in rows[:-1])
    assert sum(row.num_documents for row in rows) == len(documents)
    assert sum(row.num_loss_tokens for row in rows) == (int(whole_mask[1:].sum()) if has_mask else len(whole) - 1)
    if has_mask:
        owned_starts = np.concatenate([shard.starts_NT[:, :-1].ravel() for shard in shards])
        assert owned_starts.tolist() == [*np.concatenate(begins), *([2] + [0] * block_tokens)[: len(owned) - len(whole)]]
    for document, (shard, block, offset) in zip(documents, places, strict=True):
        assert owned[(int(shard) * max_blocks + int(block)) * block_tokens + int(offset)] == document[0]
    starts = np.cumsum([0, *lengths])[:-1]
    shard_tokens = max_blocks * block_tokens
    # Windows lie within shards; padding that runs into the next one, as it may here, counts as far as the end of its own.
    padding = [
        min(length, shard_tokens - start % shard_tokens)
        for start, length, kind in zip(starts, lengths, kinds, strict=True)
        if kind == 2
    ]
    assert sum(row.num_padding for row in rows) == (sum(padding) if has_mask else 0)
    assert [row.num_documents for row in rows] == [
        int(((starts >= i * shard_tokens) & (starts < (i + 1) * shard_tokens)).sum()) for i in range(len(rows))
    ]
