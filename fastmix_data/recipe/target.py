"""The recipe's target: what the mixture should be good at."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fastmix_data.recipe.section import Section, require_one
from fastmix_data.recipe.sources import TextSection


class TargetFiles(TextSection):
    """A target that is not one of the sources."""

    weight: float = Field(1.0, gt=0, description="Weight of this target's mean token loss, relative to the others.")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("files", "tokens"))
        return self


class TargetSection(Section):
    """What the mixture should be good at: a weighted mean of mean token losses on held-out data."""

    sources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Sources whose held-out split counts, with relative weights."
    )
    files: dict[str, TargetFiles] = Field(default_factory=dict, description="Targets from files of their own, by name.")
    worst_case: bool = Field(
        False,
        description="Minimax: weights move to the target with the largest regret, its loss over that of a reference run at the same step. "
        "The reference mixture is not_worse_than, or uniform without it. The targets' own weights then only enter the reported mean.",
    )
    not_worse_than: Literal["uniform", "proportional"] | None = Field(
        None,
        description="Non-regression limit: no target may end worse than in a reference run of the same budget on this mixture.",
    )
    limit_tolerance: float = Field(0.0, ge=0, description="Slack of not_worse_than, in nats per loss token.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.sources and not self.files:
            raise ValueError("give at least one of sources and files")
        if self.worst_case and len(self.sources) + len(self.files) < 2:
            raise ValueError("worst_case needs at least two targets; name another in sources or files, or leave worst_case out")
        if self.limit_tolerance and self.not_worse_than is None:
            raise ValueError("limit_tolerance is the slack of a limit; give not_worse_than: uniform or proportional too")
        return self

    @property
    def reference_mixture(self) -> Literal["uniform", "proportional"] | None:
        """Mixture of the run that losses are held against, if the recipe asks for one."""
        return self.not_worse_than or ("uniform" if self.worst_case else None)

    def weights(self) -> dict[str, float]:
        """Weight of each target by name, summing to 1."""
        weights = dict(self.sources) | {name: files.weight for name, files in self.files.items()}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}
