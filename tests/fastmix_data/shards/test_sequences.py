from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmix_data.errors import InputError
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import SequenceReader, half_of


def read_all(reader: SequenceReader, source: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.arange(reader.num_sequences_K[source])
    return reader.read(np.full(len(numbers), source), numbers)


@pytest.mark.parametrize("sequence_length", [4, 8, 16])
def test_sequences_cover_every_label_of_a_source_exactly_once(make_catalog: Callable[..., Catalog], sequence_length: int) -> None:
    catalog = make_catalog({"a": [200, 33], "b": [77], "c": [16, 17]}, masked=["b"])
    reader = SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=sequence_length)
    for index, name in enumerate(catalog.sources):
        tokens, carries = read_all(reader, index)
        expected = []
        for row in catalog.shards(name, "train"):
            shard = catalog.open(row)
            labels = shard.tokens_NT[:, 1:].reshape(-1)[: row.num_labels]
            if shard.loss_mask_NT is not None:
                labels = labels[shard.loss_mask_NT[:, 1:].reshape(-1)[: row.num_labels] > 0]
            expected.append(labels)
        assert np.array_equal(tokens[:, 1:][carries], np.concatenate(expected))
        assert carries.sum() == sum(row.num_loss_tokens for row in catalog.shards(name, "train"))
        assert reader.mean_loss_tokens_K[index] == pytest.approx(carries.sum() / len(tokens))


def test_a_mixed_batch_equals_reads_one_by_one(make_catalog: Callable[..., Catalog]) -> None:
    catalog = make_catalog({"a": [300], "b": [90, 40]}, masked=["b"])
    reader = SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=8)
    rng = np.random.default_rng(0)
    source = rng.integers(0, 2, 40)
    sequence = rng.integers(0, reader.num_sequences_K[source])
    tokens, carries = reader.read(source, sequence)
    for i in range(40):
        one_tokens, one_carries = reader.read(source[i : i + 1], sequence[i : i + 1])
        assert np.array_equal(tokens[i], one_tokens[0]) and np.array_equal(carries[i], one_carries[0])


def test_halves_of_the_held_out_data_are_disjoint_and_complete(make_catalog: Callable[..., Catalog]) -> None:
    catalog = make_catalog({"a": [100]}, valid_tokens=150)
    whole, search, unseen = (
        read_all(SequenceReader(catalog, sources=["a"], split="valid", sequence_length=8, half=half), 0)[0].tolist()
        for half in (None, "search", "unseen")
    )
    assert sorted(search + unseen) == sorted(whole) and abs(len(search) - len(unseen)) <= 1


def test_odd_sequences_go_to_the_halves_in_turn() -> None:
    sizes = [stop - start for start, stop in (half_of(1, half="search", shard_number=number) for number in range(4))]
    assert sizes == [1, 0, 1, 0]


def test_a_source_smaller_than_a_sequence_is_refused_with_a_remedy(make_catalog: Callable[..., Catalog]) -> None:
    catalog = make_catalog({"a": [100], "tiny": [1]})
    with pytest.raises(InputError, match=r"source tiny: .*smaller than one sequence of 8"):
        SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=8)
