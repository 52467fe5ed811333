from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.permutation import NO_VALUE, derive_keys, name_key, permute, positions_of, shuffled


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**31))
def test_every_key_gives_a_permutation(size: int, seed: int) -> None:
    images = permute(np.arange(size), size=size, key=derive_keys(seed))
    assert np.array_equal(np.sort(images), np.arange(size))


@given(size=st.integers(2, 10**15), seed=st.integers(0, 2**31), data=st.data())
def test_single_positions_of_huge_domains_stay_within_and_apart(size: int, seed: int, data: st.DataObject) -> None:
    positions = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20)))
    images = permute(positions, size=size, key=derive_keys(seed))
    assert len(set(images.tolist())) == len(positions) and images.min() >= 0 and images.max() < size


def test_positions_and_images_are_independent_over_keys() -> None:
    counts = np.zeros((7, 7))
    for seed in range(4900):
        counts[np.arange(7), permute(np.arange(7), size=7, key=derive_keys(seed))] += 1
    chi_square = ((counts - 700) ** 2 / 700).sum()
    assert chi_square < 36 + 5 * np.sqrt(2 * 36)  # 36 degrees of freedom, five standard deviations


def test_sizes_and_keys_broadcast_per_position() -> None:
    keys = derive_keys(5, np.arange(4))
    together = permute([0, 1, 2, 3], size=[5, 6, 7, 8], key=keys)
    alone = [permute(i, size=5 + i, key=keys[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == alone


@given(size=st.integers(1, 10**15), seed=st.integers(0, 2**31), data=st.data())
def test_positions_are_found_from_their_images(size: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    images = permute(positions, size=size, key=derive_keys(seed))
    assert positions_of(images, size=size, key=derive_keys(seed)).tolist() == positions


@given(st.lists(st.integers(0, 80), min_size=1, max_size=5), st.integers(0, 2**31))
def test_shuffled_rows_have_their_own_values_and_what_is_none_comes_last(sizes: list[int], seed: int) -> None:
    number_M = np.arange(max(sizes))
    values_UM = np.where(number_M < np.array(sizes)[:, None], number_M // 2, NO_VALUE)
    shuffled_UM = shuffled(values_UM, keys_U=derive_keys(seed, np.arange(len(sizes))))
    for size, row, values in zip(sizes, shuffled_UM.tolist(), values_UM.tolist(), strict=True):
        assert sorted(row[:size]) == values[:size] and row[size:] == values[size:]


def test_shuffled_rows_have_every_value_everywhere_alike() -> None:
    values_UM = np.broadcast_to(np.arange(7), (4900, 7)).copy()
    shuffled_UM = shuffled(values_UM, keys_U=derive_keys(np.arange(4900)))
    counts = np.array([np.bincount(column, minlength=7) for column in shuffled_UM.T])
    assert ((counts - 700) ** 2 / 700).sum() < 36 + 5 * np.sqrt(2 * 36)


def test_keys_of_names_are_what_they_always_were() -> None:
    assert [name_key(name) for name in ("web", "code")] == [6674642467988156197, 7313750787042593323]
