"""The recipe's bounds on the mixture."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from fastmix_data.recipe.section import Section


class GroupSection(Section):
    """Sources whose total share is bounded."""

    sources: tuple[str, ...] = Field(min_length=1, description="Members; a source is in one group at most.")
    min: float = Field(0.0, ge=0, le=1, description="Smallest total share.")
    max: float = Field(1.0, ge=0, le=1, description="Largest total share.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; swap them or change one")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources names one of {', '.join(self.sources)} twice; name each once")
        return self


def _parse_groups(value: Any) -> Any:
    """Accept the short form `{code: [python, c], max: 0.3}`, one mapping or a list of them, beside the full one."""
    shorts = [value] if isinstance(value, dict) and any(isinstance(member, list) for member in value.values()) else value
    if not isinstance(shorts, list):
        return value
    groups: dict[str, Any] = {}
    for short in shorts:
        if not isinstance(short, dict):
            return value
        members = [key for key in short if key not in ("min", "max")]
        if len(members) != 1 and ("min" in short or "max" in short):
            raise ValueError(f"a group with a bound has one name; got {', '.join(members)}")
        bounds = {key: short[key] for key in ("min", "max") if key in short}
        groups |= {name: {"sources": short[name], **bounds} for name in members}
    return groups


Share = Annotated[float, Field(ge=0, le=1)]


class ConstraintsSection(Section):
    """Bounds on the mixture, kept at every step of the search: each move ends at the nearest mixture within them."""

    floor: Share | dict[str, Share] = Field(
        0.0, description="Smallest share: one number for every source, or by name (others: 0)."
    )
    ceiling: Share | dict[str, Share] = Field(
        1.0, description="Largest share: one number for every source, or by name (others: 1)."
    )
    pinned: dict[str, Share] = Field(
        default_factory=dict, description="Shares that are fixed, by name; they come before a floor or ceiling for every source."
    )
    groups: Annotated[dict[str, GroupSection], BeforeValidator(_parse_groups)] = Field(
        default_factory=dict,
        description="Bounds on the total share of several sources: {code: {sources: [python, c], max: 0.3}}.",
    )
    epoch_caps: bool = Field(
        True,
        description="Keep every share below emit.max_epochs * its tokens / emit.token_budget, so that production can honour it.",
    )

    @model_validator(mode="after")
    def _agreeing(self) -> Self:
        for name, share in self.pinned.items():
            low = self.floor.get(name, 0.0) if isinstance(self.floor, dict) else 0.0
            high = self.ceiling.get(name, 1.0) if isinstance(self.ceiling, dict) else 1.0
            if not low <= share <= high:
                raise ValueError(
                    f"pinned.{name} {share:g} is outside its floor {low:g} and ceiling {high:g}; leave those of {name} out"
                )
        group_of: dict[str, str] = {}
        for group, section in self.groups.items():
            for name in section.sources:
                if name in group_of:
                    raise ValueError(f"groups: {name} is in {group_of[name]} and in {group}; a source is in one group at most")
                group_of[name] = group
        return self
