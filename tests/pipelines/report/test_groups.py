"""Sources are grouped as the recipe constrains them, else by how their names begin, and only where that helps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.recipe.constraints import GroupSection
from pipelines.report.groups import SourceGroup, group_sources

NAMES = st.text("abc_-", min_size=1, max_size=8)


def members(groups: tuple[SourceGroup, ...]) -> dict[str, tuple[str, ...]]:
    return {group.name: group.sources for group in groups}


def test_constrained_groups_come_with_their_bounds_and_the_rest_is_in_none() -> None:
    groups = group_sources(["web", "c", "law", "python"], {"code": GroupSection(sources=("python", "c"), min=0.1, max=0.3)})
    assert groups == (SourceGroup("", ("web", "law")), SourceGroup("code", ("c", "python"), 0.1, 0.3))


def test_names_that_begin_alike_are_grouped_after_what_all_of_them_share() -> None:
    names = [f"dolma_{kind}-{number}" for kind in ("code", "web") for number in range(6)] + ["dolma_law", "dolma_chess"]
    groups = members(group_sources(names, {}))
    assert {name: len(found) for name, found in groups.items()} == {"dolma_code": 6, "dolma_web": 6, "": 2}


def test_names_that_share_nothing_or_all_the_same_are_not_grouped() -> None:
    assert group_sources([f"source_{number}" for number in range(40)], {}) == ()
    assert group_sources([f"s{number}" for number in range(40)], {}) == ()
    assert group_sources(["web_a", "web_b", "web_c", "code_a", "code_b", "code_c"], {}) == ()


@given(st.lists(NAMES, unique=True, max_size=60), st.lists(NAMES, unique=True, max_size=5))
def test_groups_partition_the_sources_in_their_order(names: list[str], constrained: list[str]) -> None:
    groups = group_sources(names, {"one": GroupSection(sources=tuple(constrained))} if constrained else {})
    if groups:
        assert sorted(name for group in groups for name in group.sources) == sorted(names)
        assert all(list(group.sources) == sorted(group.sources, key=names.index) for group in groups)
