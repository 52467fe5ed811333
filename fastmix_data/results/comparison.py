"""What a comparison of methods came to: the losses of fresh proxies on each method's mixture, and what finding it cost."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import CorruptArtefactError

SCHEMA_VERSION = 1
REFERENCE = "uniform"  # what every method is compared with


class ComparedMethod(BaseModel):
    """A method's mixture; losses have a value per seed, in nats per token of the half that no search saw."""

    model_config = ConfigDict(frozen=True)

    weights: dict[str, float] = Field(default_factory=dict)
    target_loss: tuple[FiniteFloat, ...] = Field(min_length=1, description="Mean over targets by their weights.")
    target_losses_by_name: dict[str, tuple[FiniteFloat, ...]] = Field(default_factory=dict)
    search_tokens: int = Field(0, ge=0)
    search_seconds: float = Field(0.0, ge=0)
    search_flops: float = Field(0.0, ge=0)


class Comparison(BaseModel):
    """`compare.json`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    recipe_hash: str = ""
    catalog_hash: str = ""
    seeds: tuple[int, ...] = Field((), description="Of the confirming proxies, the same for every method.")
    token_budget: int = 0
    target: dict[str, float] = Field(default_factory=dict, description="Weight of each target.")
    methods: dict[str, ComparedMethod] = Field(min_length=1)


def save_comparison(path: Path, comparison: Comparison) -> None:
    """Write `compare.json` atomically."""
    write_json(path, comparison.model_dump())


def load_comparison(path: Path) -> Comparison:
    """Read `compare.json`.

    Raises:
        CorruptArtefactError: it is not one, or its methods were not scored on the same seeds.
    """
    again = "run `fastmix compare` again"
    try:
        comparison = Comparison.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptArtefactError(f"{path}: {where}", first["msg"], again) from error
    if comparison.schema_version != SCHEMA_VERSION:
        problem = f"not a comparison of schema version {SCHEMA_VERSION}"
        raise CorruptArtefactError(path, problem, "delete it and run the command again")
    counts = {name: len(method.target_loss) for name, method in comparison.methods.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CorruptArtefactError(path, f"target_loss has a value per seed, but not as many for all ({listed})", again)
    return comparison
