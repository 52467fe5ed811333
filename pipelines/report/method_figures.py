"""What a comparison of methods found: each one's loss beside uniform's, seed by seed in pairs, and what its search cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from fastmix_data.artefacts import read_json
from fastmix_data.errors import CorruptArtefactError
from pipelines.report.intervals import mean_interval

REFERENCE = "uniform"


class ComparedMethod(BaseModel):
    """A method in `compare.json`; `target_loss` has a value per seed, in nats per token."""

    model_config = ConfigDict(frozen=True)

    weights: dict[str, float] = Field(default_factory=dict)
    target_loss: tuple[FiniteFloat, ...] = Field(min_length=1)
    search_tokens: int = Field(0, ge=0)
    search_seconds: float = Field(0.0, ge=0)
    search_flops: float = Field(0.0, ge=0)


class Comparison(BaseModel):
    """`compare.json`, as far as the report needs it."""

    model_config = ConfigDict(frozen=True)

    methods: dict[str, ComparedMethod] = Field(min_length=1)
    seeds: tuple[int, ...] = ()
    catalog_hash: str = ""
    recipe_hash: str = ""


@dataclass(frozen=True)
class MethodFigures:
    """A method's result.

    Attributes:
        mean_loss: target loss in nats per token, mean over the seeds.
        differences: loss less that of uniform with the same seed; empty without uniform, and for uniform itself.
        difference: their mean.
        interval: 90% Student interval of that mean; None for fewer than two seeds.
        gain_share: part of the attainable gain, which is what the best method compared gains over uniform; None where nothing is gained.
    """

    name: str
    mean_loss: float
    differences: tuple[float, ...]
    difference: float | None
    interval: tuple[float, float] | None
    gain_share: float | None
    search_tokens: int
    search_seconds: float
    search_flops: float


def method_figures(comparison: Comparison) -> list[MethodFigures]:
    """Figures of every method by rising mean loss.

    >>> loss = {"uniform": (4.2, 4.3), "regmix": (4.1, 4.25), "fastmix": (4.0, 4.1)}
    >>> found = method_figures(Comparison(methods={name: ComparedMethod(target_loss=values) for name, values in loss.items()}))
    >>> [(each.name, round(each.mean_loss, 3), each.gain_share and round(each.gain_share, 3)) for each in found]
    [('fastmix', 4.05, 1.0), ('regmix', 4.175, 0.375), ('uniform', 4.25, 0.0)]
    """
    means = {name: _mean(method.target_loss) for name, method in comparison.methods.items()}
    reference = comparison.methods.get(REFERENCE)
    attainable = means[REFERENCE] - min(means.values()) if reference is not None else 0.0
    found = []
    for name in sorted(means, key=lambda name: (means[name], name)):
        method = comparison.methods[name]
        pairs = zip(method.target_loss, reference.target_loss, strict=True) if reference is not None and name != REFERENCE else ()
        differences = tuple(loss - uniform for loss, uniform in pairs)
        found.append(
            MethodFigures(
                name=name,
                mean_loss=means[name],
                differences=differences,
                difference=_mean(differences) if differences else None,
                interval=mean_interval(differences),
                gain_share=(means[REFERENCE] - means[name]) / attainable if attainable > 0 else None,
                search_tokens=method.search_tokens,
                search_seconds=method.search_seconds,
                search_flops=method.search_flops,
            )
        )
    return found


def read_comparison(path: Path) -> Comparison:
    """Read `compare.json`.

    Raises:
        CorruptArtefactError: it is not one, or its methods were not scored on the same seeds.
    """
    try:
        comparison = Comparison.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptArtefactError(f"{path}: {where}: {first['msg']}; run `fastmix compare` again") from error
    counts = {name: len(method.target_loss) for name, method in comparison.methods.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CorruptArtefactError(
            f"{path}: target_loss has a value per seed, but not as many for all ({listed}); run `fastmix compare` again"
        )
    return comparison


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values)
