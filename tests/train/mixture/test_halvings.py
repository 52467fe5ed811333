"""Halves of a target's documents: balanced, and never through a document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted_shards import BLOCK, write_split

from fastmix_data.shards.catalog import Catalog, CatalogInfo
from fastmix_data.shards.sequences import SequenceReader
from train.mixture.halvings import balanced_halvings, runs_of_documents

EOS = 9


@pytest.mark.parametrize(("num_documents", "num_groups"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (10_000, 8)])
def test_halvings_are_balanced_and_a_half_is_followed_by_the_other(num_documents: int, num_groups: int) -> None:
    halves_SJ = balanced_halvings(num_documents)
    assert halves_SJ.shape == (2 * (num_groups - 1), num_groups)
    first_RJ, second_RJ = halves_SJ[::2], halves_SJ[1::2]
    assert np.array_equal(first_RJ, ~second_RJ) and (first_RJ.sum(axis=1) == num_groups // 2).all()
    signs_RJ = np.where(first_RJ, 1, -1)
    assert np.array_equal(signs_RJ @ signs_RJ.T, num_groups * np.eye(num_groups - 1))


def test_sequences_that_begin_in_the_same_document_are_one_run(tmp_path: Path) -> None:
    tokens = np.ones(2 * BLOCK, np.int64)
    tokens[[5, 40, 41, 120]] = EOS  # sequences of 16: the first ends within 0, the others within 2 (twice) and 7
    info = CatalogInfo(BLOCK, 16, EOS, "runs", sources=("a",))
    catalog = Catalog(tmp_path, info, [write_split(tmp_path, "a", "valid", tokens)])
    reader = SequenceReader(catalog, sources=["a"], split="valid", sequence_length=16)
    assert runs_of_documents(reader, 0, sequence_length=16, eos_id=EOS).tolist() == [0, 1, 1, 2, 2, 2, 2, 2]
