"""The sections of a recipe that a search went by: saved beside its result, and hashed as its identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fastmix_data.atomic_files import hash_of, read_json, write_json
from fastmix_data.errors import CorruptArtefactError
from fastmix_data.recipe.emit import Epochs
from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection

# Of training, what is cut or computed once more to fit into memory.
_OF_MEMORY = {"micro_batch", "activation_checkpointing"}


class SearchedEmit(BaseModel):
    """What of production bounds the mixture, or the data that the proxy sees; the seed of the order of blocks is not among it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_budget: int
    max_epochs: Epochs | dict[str, Epochs] | None = None


class SearchedRecipe(BaseModel):
    """What decides a search, beside the catalog."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: TargetSection
    proxy: ProxySection
    deepspeed: DeepspeedSection
    training: TrainingSection
    search: SearchSection
    emit: SearchedEmit | None = None

    @property
    def hash(self) -> str:
        """Identity of all that decides the answer; how often a proxy is saved does not."""
        return hash_of(self._deciding)

    @property
    def continued_hash(self) -> str:
        """Identity of what a stopped search may go on from: cut otherwise over other ranks, too, and at another ZeRO stage."""
        deciding = self._deciding
        training = {name: value for name, value in deciding["training"].items() if name not in _OF_MEMORY}
        return hash_of({**deciding, "deepspeed": None, "training": training})

    @property
    def _deciding(self) -> dict[str, Any]:
        content: dict[str, Any] = self.model_dump(mode="json", exclude={"search": {"checkpoint_interval"}})
        return content

    def changed_keys(self, before: SearchedRecipe) -> list[str]:
        """Keys whose values differ, as `section.key`."""
        then, now = before._deciding, self._deciding
        return [
            f"{section}.{key}"
            for section in now
            for key in dict.fromkeys([*(now[section] or {}), *(then[section] or {})])
            if (then[section] or {}).get(key) != (now[section] or {}).get(key)
        ]


def save_searched_recipe(path: Path, recipe: SearchedRecipe) -> None:
    """Write `recipe.json` atomically."""
    write_json(path, recipe.model_dump(mode="json"))


def load_searched_recipe(path: Path) -> SearchedRecipe:
    """Read `recipe.json`.

    Raises:
        CorruptArtefactError: it is not one, or one of another version.
    """
    try:
        return SearchedRecipe.model_validate(read_json(path))
    except ValidationError as error:
        problem = "not the recipe of a search of this version"
        raise CorruptArtefactError(path, problem, "delete it and run `fastmix search --replace`") from error
