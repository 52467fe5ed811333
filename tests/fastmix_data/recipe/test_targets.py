"""Checks of the target section."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fastmix_data.recipe.target import TargetSection


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sources": {"a": 1}, "worst_case": True}, "worst_case needs at least two targets"),
        ({"sources": {"a": 1}, "limit_tolerance": 0.1}, "give not_worse_than: uniform or proportional too"),
        ({"sources": {"a": 1}, "not_worse_than": "best"}, "'uniform' or 'proportional'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_remedy(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TargetSection.model_validate(section)


@pytest.mark.parametrize(
    ("options", "mixture"),
    [
        ({}, None),
        ({"worst_case": True}, "uniform"),
        ({"not_worse_than": "proportional"}, "proportional"),
        ({"worst_case": True, "not_worse_than": "proportional", "limit_tolerance": 0.01}, "proportional"),
    ],
)
def test_the_reference_is_the_limit_or_uniform(options: dict[str, Any], mixture: str | None) -> None:
    section = TargetSection.model_validate({"sources": {"a": 1}, "files": {"b": {"files": "b.txt"}}, **options})
    assert section.reference_mixture == mixture
