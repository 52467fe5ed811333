"""The methods that `fastmix compare` knows, and the list of them that a user types."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastmix_data.errors import RecipeError
from fastmix_data.messages import joined, nearest
from fastmix_data.results.comparison import REFERENCE

AROUND_COUNT = "regmix-count"  # the one swarm that is of a single target
_STATED = (REFERENCE, "proportional", "count", "mde")
_SEARCHED = ("fastmix", "trials", "paper", "doge", "doremi", "mixmin")
_SWARMS = ("regmix", "olmix", "additive", AROUND_COUNT)
_LEAST_PROXIES = 2


@dataclass(frozen=True)
class Method:
    """A way to a mixture.

    Attributes:
        name: as typed, such as regmix:32.
        kind: the name without its number.
        num_proxies: size of a swarm; 0 for the others.
    """

    name: str
    kind: str
    num_proxies: int = 0

    @property
    def is_stated(self) -> bool:
        """Whether the mixture costs nothing to find."""
        return self.kind in _STATED

    @property
    def uses_swarm(self) -> bool:
        """Whether it fits the losses of a swarm."""
        return self.kind in _SWARMS


def parse_methods(text: str) -> list[Method]:
    """The methods of a comma-separated list.

    Raises:
        RecipeError: an unknown method, a number that is missing or wrong, one given twice, or no uniform.

    >>> parse_methods("uniform,regmix:32")[1]
    Method(name='regmix:32', kind='regmix', num_proxies=32)
    """
    methods = [_parse(name.strip()) for name in text.split(",")]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"--methods {text}", f"{name} is given twice", "remove one")
    if REFERENCE not in names:
        raise RecipeError(f"--methods {text}", f"{REFERENCE} is missing, which every method is compared with", "add it")
    return methods


def _parse(name: str) -> Method:
    kind, colon, number = name.partition(":")
    if kind not in (*_STATED, *_SEARCHED, *_SWARMS):
        likely = nearest(kind, [*_STATED, *_SEARCHED, *_SWARMS])
        hint = f"did you mean {likely}?" if likely else "leave it out."
        known = ", ".join([*_SEARCHED, *_STATED, *(f"{swarm}:N" for swarm in _SWARMS)])
        raise RecipeError("--methods", f"there is no method {name!r}", f"{hint} Known are {known}")
    if kind not in _SWARMS:
        if colon:
            raise RecipeError(f"--methods: {name!r}", f"only {joined(_SWARMS)} take a number of proxies", f"write {kind}")
        return Method(name, kind)
    if not re.fullmatch(r"[0-9]{1,6}", number) or int(number) < _LEAST_PROXIES:
        raise RecipeError(
            f"--methods: {name!r}", f"needs a number of proxies, {_LEAST_PROXIES} or more", f"write it as {kind}:32"
        )
    return Method(name, kind, int(number))
