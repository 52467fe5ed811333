from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fastmix_data.errors import InputError, MismatchError
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import SequenceReader, Sequences, half_of


def read_all(reader: SequenceReader, source: int) -> Sequences:
    numbers = np.arange(reader.num_sequences_K[source])
    return reader.read(np.full(len(numbers), source), numbers)


@pytest.mark.parametrize("sequence_length", [4, 8, 16])
def test_sequences_cover_every_label_of_a_source_exactly_once(make_catalog: Callable[..., Catalog], sequence_length: int) -> None:
    catalog = make_catalog({"a": [200, 33], "b": [77], "c": [16, 17]}, masked=["b"])
    reader = SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=sequence_length)
    for index, name in enumerate(catalog.sources):
        tokens, carries, _ = read_all(reader, index)
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
    whole = reader.read(source, sequence)
    for i in range(40):
        one = reader.read(source[i : i + 1], sequence[i : i + 1])
        assert all(np.array_equal(part[i], other[0]) for part, other in zip(whole, one, strict=True))


def test_positions_begin_anew_where_the_shard_says_and_after_ends_of_documents_if_asked(
    make_catalog: Callable[..., Catalog],
) -> None:
    catalog = make_catalog({"plain": [300], "examples": [90, 40]}, masked=["examples"])
    catalog = Catalog(catalog.root, replace(catalog.info, eos_id=7), catalog.rows)  # the tokens of `plain` count upwards from 1

    def positions(index: int, **options: bool) -> np.ndarray:
        reader = SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=8, **options)
        found = read_all(reader, index).positions_BT
        assert found is not None
        return found.reshape(-1)

    def expected(begins: list[bool]) -> list[int]:
        count, positions = -1, []
        for number, begin in enumerate(begins):
            count = 0 if begin or number % 8 == 0 else count + 1
            positions.append(count)
        return positions

    starts = [
        catalog.open(row).starts_NT[:, :-1].reshape(-1)[: -(-row.num_labels // 8) * 8]
        for row in catalog.shards("examples", "train")
    ]
    assert {0, 1, 2} <= set(np.concatenate(starts))
    for asked in (False, True):
        assert positions(1, document_attention=asked).tolist() == expected((np.concatenate(starts) > 0).tolist())
    assert positions(0).tolist() == list(range(8)) * (len(positions(0)) // 8)
    assert positions(0, document_attention=True).tolist() == expected([number == 7 for number in range(len(positions(0)))])
    plain = SequenceReader(catalog, sources=["plain"], split="train", sequence_length=8)
    assert read_all(plain, 0).positions_BT is None


def test_a_length_that_would_cut_examples_is_refused_with_both_lengths(make_catalog: Callable[..., Catalog]) -> None:
    catalog = make_catalog({"plain": [300], "examples": [90]}, masked=["examples"])
    with pytest.raises(
        MismatchError, match=r"examples have 4 tokens, and training.sequence_length 2 is no multiple of that; use a multiple of 4"
    ):
        SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=2)
    SequenceReader(catalog, sources=["plain"], split="train", sequence_length=2)


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
