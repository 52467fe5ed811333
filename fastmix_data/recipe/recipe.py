"""The recipe: one YAML file that says everything about a run. This model and those of its sections, beside it, are its only definition.

Every field's description gives its unit and effect; `fastmix recipe --schema` and the documentation print them. Reading the file,
overrides and explanations of mistakes are in `file.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, overload

from pydantic import Field, PrivateAttr, model_validator

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.recipe.exports import Exports, ExportSection
from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.search import PAPER, SearchSection
from fastmix_data.recipe.section import Section
from fastmix_data.recipe.sources import ShardsSection, SourceSection, StorageSection, TokenizerSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.remote.shard_store import ShardStore
from fastmix_data.workdir import Workdir

SOURCE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")
_EXAMPLES = {
    "target": "target: {sources: {NAME: 1}}",
    "training": "training: {token_budget: 2M}",
    "emit": "emit: {token_budget: 100M}",
}


# What a checkpoint's defaults are instead of a fresh proxy's. It knows bigrams already, so that their count says little of what it lacks;
# and at a fresh proxy's rate it would forget what it knows. Adapters, which start from nothing, take ten times the rate.
_FROM_CHECKPOINT: dict[str, Any] = {"initial_weights": "uniform"}
_CHECKPOINT_RATE, _LORA_RATE = 1e-4, 1e-3


class Recipe(Section):
    """A fastmix run. `target`, `training` and `emit` have no default, and are asked for by the commands that need them."""

    workdir: str = Field("run", description="Folder of everything the run makes; relative to the recipe.")
    tokenizer: TokenizerSection
    sources: dict[str, SourceSection] = Field(min_length=1, description="Training corpora by name.")
    shards: ShardsSection = Field(default_factory=lambda: ShardsSection())
    storage: StorageSection | None = Field(None, description="Where the shards are read, if not in the workdir.")
    target: TargetSection | None = None
    proxy: ProxySection = Field(default_factory=lambda: ProxySection.model_validate({}))
    deepspeed: DeepspeedSection = Field(default_factory=lambda: DeepspeedSection())
    training: TrainingSection | None = None
    search: SearchSection = Field(default_factory=lambda: SearchSection())
    emit: EmitSection | None = None
    exports: Exports = Field((), description="Formats of other trainers that `fastmix run` ends with: names, or sections.")

    _base: Path = PrivateAttr(default_factory=Path.cwd)

    @model_validator(mode="before")
    @classmethod
    def _suited_to_a_checkpoint(cls, value: Any) -> Any:
        """Fill in what depends on where the proxy starts, before sections know of nothing but their own keys."""
        if not isinstance(value, dict):
            return value
        proxy, training, search = value.get("proxy"), value.get("training"), value.get("search") or {}
        given = proxy if isinstance(proxy, dict) else {}
        has_checkpoint, filled = given.get("checkpoint") is not None, dict(value)
        if has_checkpoint and isinstance(training, dict):
            rate = _CHECKPOINT_RATE if given.get("lora") is None else _LORA_RATE
            filled["training"] = {"learning_rate": rate, **training}
        if isinstance(search, dict):
            defaults = (PAPER if search.get("method") == "paper" else {}) | (_FROM_CHECKPOINT if has_checkpoint else {})
            if defaults:
                filled["search"] = defaults | {key: content for key, content in search.items() if content is not None}
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_names()
        for key, named in self._names_of_sources():
            for name in named:
                if name not in self.sources:
                    raise ValueError(f"{key}: there is no source {name!r}; the sources are {', '.join(self.sources)}")
        training = self.training
        if training is not None:
            if training.compile and self.deepspeed.zero_stage == 3:
                raise ValueError(
                    "training.compile: deepspeed.zero_stage 3 takes parameters apart around every layer, which compiled blocks cannot; "
                    "use stage 2, or leave it out"
                )
            self.search.check_steps(training, targets_move=self.target is not None and self.target.reference_mixture is not None)
            block, length = self.shards.block_tokens, training.sequence_length
            if block % length:
                divisor = max(number for number in range(1, min(length, block) + 1) if block % number == 0)
                raise ValueError(
                    f"training.sequence_length {length} does not divide shards.block_tokens {block}; choose one that does, for example "
                    f"{divisor}"
                )
        self._check_examples()
        self._check_exports()
        self._check_tokens()
        return self

    def _check_tokens(self) -> None:
        targets = {} if self.target is None else self.target.files
        named = [f"sources.{name}" for name, section in self.sources.items() if section.tokens is not None]
        named += [f"target.files.{name}" for name, section in targets.items() if section.tokens is not None]
        if named and self.tokenizer.train is not None:
            raise ValueError(
                f"{named[0]}.tokens were made with a tokenizer that is there, and tokenizer.train makes another; give theirs with "
                "tokenizer.file"
            )

    def _check_examples(self) -> None:
        block, window = self.shards.block_tokens, self.example_tokens
        if block % window:
            raise ValueError(f"shards.example_tokens {window} does not divide shards.block_tokens {block}; choose one that does")
        if self.training is not None and self.has_examples and self.training.sequence_length % window:
            raise ValueError(
                f"training.sequence_length {self.training.sequence_length} is no multiple of shards.example_tokens {window}, and would cut "
                "examples apart; leave shards.example_tokens out, or choose a multiple of it"
            )

    def _check_exports(self) -> None:
        folders: set[str] = set()
        for section in self.exports:
            folder = os.path.normpath(section.dir or Workdir(Path(self.workdir)).export(section.to))
            if folder in folders:
                raise ValueError(f"exports: two are written to {folder}; give one of them another dir")
            folders.add(folder)

    @property
    def example_tokens(self) -> int:
        """Tokens of the windows that examples are packed into."""
        length = self.shards.block_tokens if self.training is None else self.training.sequence_length
        return self.shards.example_tokens or length

    @property
    def has_examples(self) -> bool:
        """Whether any source or target is of examples of which only part carries loss."""
        targets = {} if self.target is None else self.target.files
        return any(section.has_mask for section in (*self.sources.values(), *targets.values()))

    def _check_names(self) -> None:
        targets = self.target.files if self.target is not None else {}
        for key, names in (("sources", tuple(self.sources)), ("target.files", tuple(targets))):
            for name in names:
                if not SOURCE_NAME.match(name):
                    raise ValueError(
                        f"{key}: {name!r} is not a usable name; use letters, digits, '_' and '-', at most 48, starting with a letter or "
                        "digit"
                    )
        for key, names in (
            ("target.files", tuple(targets)),
            ("search.constraints.groups", tuple(self.search.constraints.groups)),
        ):
            for name in names:
                if name in self.sources:
                    raise ValueError(f"{key}: {name!r} is the name of a source too; choose another")

    def _names_of_sources(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every key that names sources, with the names."""
        search, constraints = self.search, self.search.constraints
        by_source: tuple[tuple[str, object], ...] = (
            ("target.sources", self.target.sources if self.target is not None else None),
            ("search.initial_weights", search.initial_weights),
            ("search.constraints.floor", constraints.floor),
            ("search.constraints.ceiling", constraints.ceiling),
            ("search.constraints.pinned", constraints.pinned),
        )
        yield from ((key, tuple(value)) for key, value in by_source if isinstance(value, dict))
        if self.emit is not None:
            yield from self.emit.named_sources().items()
        yield from ((f"search.constraints.groups.{name}", group.sources) for name, group in constraints.groups.items())

    @overload
    def required(self, section: Literal["target"]) -> TargetSection: ...
    @overload
    def required(self, section: Literal["training"]) -> TrainingSection: ...
    @overload
    def required(self, section: Literal["emit"]) -> EmitSection: ...
    def required(self, section: Literal["target", "training", "emit"]) -> Section:
        """A section that this command cannot do without.

        Raises:
            RecipeError: the recipe does not have it.
        """
        found: Section | None = getattr(self, section)
        if found is None:
            raise RecipeError(section, "the recipe lacks this section, which the command needs", f"add {_EXAMPLES[section]}")
        return found

    @property
    def base(self) -> Path:
        """Folder that relative paths of the recipe start from."""
        return self._base

    def located(self, base: Path) -> Recipe:
        """The same recipe with relative paths starting from `base`."""
        copy = self.model_copy()
        copy._base = base.resolve()
        return copy

    def resolve(self, path: str) -> Path:
        """Absolute form of a local path of the recipe."""
        return self._base / Path(path).expanduser()

    @property
    def paths(self) -> Workdir:
        """Where everything that the run makes lies."""
        return Workdir(self.resolve(self.workdir))

    @property
    def store(self) -> ShardStore | None:
        """What shards are read from, if not straight from the workdir."""
        return None if self.storage is None else self.storage.store(base=self.base, shards=self.paths.shards)

    def export_directory(self, section: ExportSection) -> Path:
        """Folder that an export is written to."""
        return self.paths.export(section.to) if section.dir is None else self.resolve(section.dir)
