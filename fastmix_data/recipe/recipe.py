"""The recipe: one YAML file that says everything about a run. These models, and those of its sections in `recipe_*.py`, are its only
definition.

Every field's description gives its unit and effect; `fastmix recipe --schema` and the documentation print them. Reading the file,
overrides and explanations of mistakes are in `recipe_file.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.section import Section
from fastmix_data.recipe.sources import ShardsSection, SourceSection, TokenizerSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.units import TokenCount, parse_count

NUM_TRIALS, _FEWEST_TRIAL_STEPS = 6, 30
SOURCE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")


def _parse_epochs(value: Any) -> Any:
    if isinstance(value, str):
        return parse_count(value)
    return value


Epochs = Annotated[float, BeforeValidator(_parse_epochs), Field(gt=0)]


class EmitSection(Section):
    """The corpus to ship."""

    token_budget: TokenCount = Field(description="Tokens of the production run.")
    max_epochs: Epochs | dict[str, Epochs] = Field(
        4.0, description="How often a source may be repeated: one number, or one by source name (others: 4)."
    )
    seed: int = Field(0, ge=0, description="Fixes the order of blocks.")

    def epochs_of(self, source: str) -> float:
        """The cap of one source."""
        if isinstance(self.max_epochs, dict):
            return self.max_epochs.get(source, 4.0)
        return self.max_epochs


class Recipe(Section):
    """A fastmix run."""

    workdir: str = Field("run", description="Folder of everything the run makes; relative to the recipe.")
    tokenizer: TokenizerSection
    sources: dict[str, SourceSection] = Field(min_length=1, description="Training corpora by name.")
    shards: ShardsSection = Field(default_factory=lambda: ShardsSection())
    target: TargetSection
    proxy: ProxySection = Field(default_factory=lambda: ProxySection.model_validate({}))
    deepspeed: DeepspeedSection = Field(default_factory=lambda: DeepspeedSection())
    search: SearchSection
    emit: EmitSection

    _base: Path = PrivateAttr(default_factory=Path.cwd)
    _search_path: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for group, names in (("sources", tuple(self.sources)), ("target.files", tuple(self.target.files))):
            for name in names:
                if not SOURCE_NAME.match(name):
                    raise ValueError(
                        f"{group}: {name!r} is not a usable name; use letters, digits, '_' and '-', at most 48, starting with a "
                        "letter or digit"
                    )
        for name in self.target.files:
            if name in self.sources:
                raise ValueError(f"target.files: {name!r} is the name of a source too; choose another")
        constraints = self.search.constraints
        for name in constraints.groups:
            if name in self.sources:
                raise ValueError(f"search.constraints.groups: {name!r} is the name of a source too; choose another")
        by_source: tuple[tuple[str, object], ...] = (
            ("target.sources", self.target.sources),
            ("emit.max_epochs", self.emit.max_epochs),
            ("search.initial_weights", self.search.initial_weights),
            ("search.prior", self.search.prior),
            ("search.constraints.floor", constraints.floor),
            ("search.constraints.ceiling", constraints.ceiling),
            ("search.constraints.pinned", constraints.pinned),
            *((f"search.constraints.groups.{name}", dict.fromkeys(group.sources)) for name, group in constraints.groups.items()),
        )
        for group, value in by_source:
            for name in value if isinstance(value, dict) else ():
                if name not in self.sources:
                    raise ValueError(f"{group}: there is no source {name!r}; the sources are {', '.join(self.sources)}")
        first_update = self.search.weights_warmup_steps + self.search.update_interval
        if self.main_run.search.num_steps < first_update:
            raise ValueError(
                f"search.trial_fraction {self.search.trial_fraction:g} leaves {self.main_run.search.num_steps} steps to the search, which "
                f"end before the first update of the mixture (step {first_update}); lower it, or raise search.token_budget"
            )
        if self.shards.block_tokens % self.search.sequence_length:
            raise ValueError(
                f"search.sequence_length {self.search.sequence_length} does not divide shards.block_tokens "
                f"{self.shards.block_tokens}; choose one that does, for example {_largest_divisor(self)}"
            )
        return self

    @property
    def trial_steps(self) -> int:
        """Optimiser steps of each of the NUM_TRIALS trials of the start; 0 where there are none."""
        search = self.search
        steps = int(search.trial_fraction * search.num_steps) // NUM_TRIALS
        has_trials = search.initial_weights == "bigram" and self.target.reference_mixture is None and steps >= _FEWEST_TRIAL_STEPS
        return steps if has_trials else 0

    @property
    def trial(self) -> Recipe:
        """The recipe with one trial's budget."""
        return self._with_search(token_budget=self.trial_steps * self.search.tokens_per_step)

    @property
    def main_run(self) -> Recipe:
        """The recipe of the run in which the mixture moves, with the budget that trials leave.

        Where the targets' weights move there is no pull, and scores of earlier weights do not say how reliable those of now are.
        """
        search = self.search
        num_steps = search.num_steps - NUM_TRIALS * self.trial_steps
        budget = num_steps * search.tokens_per_step
        if self.target.reference_mixture is None:
            return self._with_search(token_budget=budget)
        strength = 0.0 if search.prior_strength is None else search.prior_strength
        return self._with_search(token_budget=budget, prior_strength=strength, shrink_scores=False)

    def _with_search(self, **changes: Any) -> Recipe:
        return self.model_copy(update={"search": self.search.model_copy(update=changes)})

    @property
    def share_seen(self) -> float:
        """Part of every source's sequences that the proxy may see: with match_repetition the search's tokens over the production run's."""
        if not self.search.match_repetition:
            return 1.0
        return min(1.0, self.search.num_steps * self.search.tokens_per_step / self.emit.token_budget)

    @property
    def base(self) -> Path:
        """Folder that relative paths of the recipe start from."""
        return self._base

    @property
    def workdir_path(self) -> Path:
        """Absolute path of the workdir."""
        return self.resolve(self.workdir)

    def located(self, base: Path) -> Recipe:
        """The same recipe with relative paths starting from `base`."""
        copy = self.model_copy()
        copy._base = base.resolve()
        return copy

    @property
    def search_path(self) -> Path:
        """Absolute path of the search's results: `search` in the workdir, unless `searching_in` named another folder."""
        return self._search_path or self.workdir_path / "search"

    def searching_in(self, directory: Path) -> Recipe:
        """The same recipe with the search's results in another folder, for a second search of the same shards."""
        copy = self.model_copy()
        copy._search_path = directory.resolve()
        return copy

    def resolve(self, path: str) -> Path:
        """Absolute form of a local path of the recipe."""
        return self._base / Path(path).expanduser()


def _largest_divisor(recipe: Recipe) -> int:
    block = recipe.shards.block_tokens
    return max(length for length in range(1, min(recipe.search.sequence_length, block) + 1) if block % length == 0)
