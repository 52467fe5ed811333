"""Which sources a report shows together: the groups that the recipe constrains, else names that begin alike."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastmix_data.recipe.constraints import GroupSection

_FEWEST_SOURCES = 12
_FEWEST_MEMBERS = 3
_SEPARATOR = re.compile(r"[_-]")


@dataclass(frozen=True)
class SourceGroup:
    """Sources that are shown together.

    Attributes:
        name: of the group; empty for the sources that are in none.
        low: smallest total share that the recipe allows.
        high: largest total share that the recipe allows.
    """

    name: str
    sources: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0

    @property
    def label(self) -> str:
        """The name, or what to call the sources without a group."""
        return self.name or "in no group"

    def total(self, values: Mapping[str, float]) -> float:
        """Sum over the members; one without a value counts nothing."""
        return sum(values.get(name, 0.0) for name in self.sources)


def group_sources(sources: Sequence[str], constrained: Mapping[str, GroupSection]) -> tuple[SourceGroup, ...]:
    """Groups that partition the sources; empty where grouping would not help a reader.

    Args:
        sources: names; members keep this order.
        constrained: `search.constraints.groups` of the resolved recipe. Empty: sources are grouped by the beginning of their name
            if there are at least 12 of them and most fall into two or more groups of at least 3.

    >>> group_sources(["python", "c", "web"], {"code": GroupSection(sources=("c", "python"), max=0.3)})[0]
    SourceGroup(name='code', sources=('python', 'c'), low=0.0, high=0.3)
    """
    if constrained:
        group_of = {member: name for name, group in constrained.items() for member in group.sources}
        bounds = {name: (group.min, group.max) for name, group in constrained.items()}
        return _partition(sources, group_of, bounds)
    if len(sources) < _FEWEST_SOURCES:
        return ()
    groups = _partition(sources, _by_beginning(sources), {})
    num_sources = [len(group.sources) for group in groups if group.name]
    return groups if len(num_sources) > 1 and 2 * sum(num_sources) >= len(sources) else ()


def _partition(
    sources: Sequence[str], group_of: Mapping[str, str], bounds: Mapping[str, tuple[float, float]]
) -> tuple[SourceGroup, ...]:
    members: dict[str, list[str]] = {}
    for name in sources:
        members.setdefault(group_of.get(name, ""), []).append(name)
    return tuple(SourceGroup(name, tuple(found), *bounds.get(name, (0.0, 1.0))) for name, found in members.items())


def _by_beginning(sources: Sequence[str]) -> dict[str, str]:
    """The first part of each name in which they differ, for the sources that share it with enough others."""
    # What every name begins with, as the name of the corpus in dolma_code_c and dolma_web_en, tells none of them apart.
    parts_by_place = zip(*(_SEPARATOR.split(name) for name in sources), strict=False)
    num_shared = sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, parts_by_place))
    beginnings = {name: _beginning(name, num_parts=num_shared + 1) for name in sources}
    counts = Counter(beginnings.values())
    return {name: beginning for name, beginning in beginnings.items() if counts[beginning] >= _FEWEST_MEMBERS}


def _beginning(name: str, *, num_parts: int) -> str:
    """The first parts of a name.

    >>> _beginning("dolma_code_python", num_parts=2)
    'dolma_code'
    """
    ends = [match.start() for match in _SEPARATOR.finditer(name)]
    return name[: ends[num_parts - 1]] if len(ends) >= num_parts else name
