"""Scales and labels of the report's plots."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.report.plots.svg import Scale, shorten, spread_labels

heights = st.floats(-50, 350, allow_nan=False)


@given(st.lists(heights, min_size=1, max_size=12))
def test_labels_keep_their_order_and_distance_within_the_bounds(wanted: list[float]) -> None:
    placed = spread_labels(wanted, gap=16, low=0, high=300)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for before, after in itertools.pairwise(order):
        assert placed[after] - placed[before] >= 16 - 1e-6
    assert min(placed) >= -1e-6 and max(placed) <= 300 + 1e-6


def test_labels_with_room_stay_where_they_are_wanted() -> None:
    assert spread_labels([200.0, 20.0, 100.0], gap=16, low=0, high=300) == [200.0, 20.0, 100.0]


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(2, 8))
@example(90071992548.0, 1e-05, 7)  # floats lie further apart here than the ticks would
def test_ticks_lie_within_the_scale_and_are_few(low: float, span: float, count: int) -> None:
    scale = Scale(low, low + span, 0, 100)
    ticks = scale.ticks(count)
    assert len(ticks) <= count + 1
    slack = 1e-6 * max(abs(low), span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@pytest.mark.parametrize("longest", [5, 6, 11, 12])
def test_shortened_names_fit_and_keep_both_ends(longest: int) -> None:
    name = "common_crawl_2024_german"
    cut = shorten(name, longest)
    assert len(cut) == longest and cut[0] == name[0] and cut[-1] == name[-1]
