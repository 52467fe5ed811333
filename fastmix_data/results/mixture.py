"""The mixture: weights of sources by name, how sure they are, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import RecipeError
from fastmix_data.weight_units import WeightUnit

SCHEMA_VERSION = 2
_SUM_TOLERANCE = 1e-6
# What to call the mixtures that trials choose between.
TRIED = {
    "start": "the start",
    "count": "the count",
    "concentrated": "the square of the count",
    "scores": "the mixture of the scores",
    "proportional": "proportional shares",
}
_FEW_DOCUMENTS = 10  # below this, one document is more than a tenth of what the mixture goes by
Shares = dict[str, float]
Intervals = dict[str, tuple[float, float]]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Certainty(_Record):
    """How far to trust the weights; empty where they were not searched."""

    interval: Intervals = Field(
        default_factory=dict,
        description="90% interval of each weight: the noise of one search, by a block bootstrap over the averaged part of its trajectory, "
        "and that of the target's documents, as document_interval has it. It is less than what another seed changes. Of several searches, "
        "the mean of their lower and of their upper ends.",
    )
    num_documents: dict[str, int] = Field(
        default_factory=dict,
        description="Documents of each target in the half that the search saw, to within one for each shard.",
    )
    document_interval: Intervals = Field(
        default_factory=dict,
        description="Where each weight would lie in 90 of 100 cases on other documents of the target, as many; judged by a bigram model's "
        "answers on halves of them, and by what so few may lack. Part of `interval`.",
    )
    signal_to_noise: dict[str, float] = Field(
        default_factory=dict,
        description="Each source's score less the mixture's, averaged over the averaged part, over its block-bootstrap standard error. "
        "Below 2 in size, the search cannot tell the source from the mixture: too little evidence, or an optimum, where more of the source "
        "neither helps nor hurts. Above 2 it was still rising; below -2 only its bounds and the search's end keep it there.",
    )
    interchangeable: list[list[str]] = Field(
        default_factory=list,
        description="Groups of sources whose scores and losses cannot be told apart: only the sum of their shares is meaningful.",
    )
    seed_interval: Intervals = Field(
        default_factory=dict,
        description="Of several searches: 90% prediction interval of each weight, where the answer of one more search would lie.",
    )
    seed_weights: dict[str, Shares] = Field(
        default_factory=dict, description="Of several searches: the weights that each seed found; `weights` is their mean."
    )

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before trusting the weights."""
        return few_documents(self.num_documents)

    @property
    def num_searches(self) -> int:
        """Searches whose mean the weights are."""
        return max(1, len(self.seed_weights))


def few_documents(num_documents: Mapping[str, int]) -> list[str]:
    """A line that names the targets of which a search sees fewer than 10 documents; none if there is no such target."""
    few = [f"{name} {count}" for name, count in num_documents.items() if count < _FEW_DOCUMENTS]
    if not few:
        return []
    return [
        f"the search sees fewer than {_FEW_DOCUMENTS} documents of a target ({', '.join(few)}), so its mixture may be that of chance; hold "
        "out more"
    ]


class StartRecord(_Record):
    """Where the search started."""

    weights: Shares = Field(default_factory=dict, description="Within the constraints; of several searches, the mean.")


class TrialsRecord(_Record):
    """What short proxies on the mixtures proposed said; losses in nats per loss token on the half that searches see."""

    mixtures: dict[str, Shares] = Field(
        description="start, scores (what the run along the scores came to), concentrated (the square of a counted start) or count (where "
        "the start is another), proportional; one that is "
        "nearly another is left out."
    )
    losses: dict[str, dict[str, float]] = Field(
        description="By mixture and round: those of a round share the seed, the number of steps and the target sequences."
    )
    tokens: dict[str, int] = Field(description="Training tokens of each trial of a round.")
    probability: dict[str, float] = Field(description="How likely each mixture is the best.")
    winner: str = Field(
        description="The answer: the likeliest best of those that are better than the start with 95% certainty, the start where none is."
    )
    ahead: dict[str, tuple[float, float, float]] = Field(
        description="How far the winner is ahead of each other mixture at horizon_tokens, in nats: mean, and ends of the 90% interval. "
        "Where it contains 0 the two cannot be told apart."
    )
    noise: float = Field(description="Standard deviation of a trial's loss beside what its round shares, in nats.")
    exponent: float = Field(description="g: differences are taken to go by tokens ** -g.")
    horizon_tokens: int = Field(description="Training tokens of a whole proxy, which `ahead` is extrapolated to.")

    def num_pairs(self, first: str, second: str) -> int:
        """Rounds in which both were tried."""
        return len(self.losses[first].keys() & self.losses[second].keys())

    @property
    def num_trials(self) -> int:
        """Proxies trained."""
        return sum(len(losses) for losses in self.losses.values())

    @property
    def noise_floor(self) -> float:
        """What two single trials may differ by in 90 of 100 pairs where nothing but chance tells them apart, in nats."""
        return 1.645 * math.sqrt(2) * self.noise

    def factor_at(self, num_tokens: int) -> float:
        """What differences at horizon_tokens are to be multiplied by for those after so many tokens."""
        return math.pow(self.horizon_tokens / num_tokens, self.exponent)


class SearchRecord(_Record):
    """The run that found the weights, and what it cost; of several searches, the sums."""

    seed: int | None = None
    num_tokens: int = Field(
        0, description="Tokens the proxies trained on, and target tokens read for hypergradients and measurements."
    )
    seconds: float = 0.0
    num_steps: int = 0
    num_updates: int = 0
    stopped: str = Field(
        "", description="Why the search ended: its budget was used up, or the mixture stood still (search.stop)."
    )
    num_parameters: int = 0
    world_size: int = 1


class Limit(_Record):
    """How a target ended beside the reference run, in nats per loss token on the half that the search saw."""

    reference: float
    loss: float
    kept: bool


class WorstTarget(_Record):
    """The target with the largest regret: its loss less that of the reference run, in nats per loss token."""

    target: str
    regret: float


class TargetRecord(_Record):
    """What the proxy came to on the target."""

    loss: dict[str, float] = Field(
        default_factory=dict,
        description="Mean token loss (nats) of the proxy on the target: search_start, search_end, unseen_start, unseen_end.",
    )
    losses: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="The same by target, and reference_end (search half) where the recipe asks for a reference run.",
    )
    weights: Shares = Field(
        default_factory=dict, description="Weight of each target's loss, averaged over the averaged part of the trajectory."
    )
    limits: dict[str, Limit] = Field(default_factory=dict, description="not_worse_than: whether each target ended within it.")
    worst: WorstTarget | None = Field(None, description="worst_case: the target that ended with the largest regret.")


class LawFigures(_Record):
    """How well a law's predictions of runs that were held out agree with what was measured."""

    rank_correlation: float
    error: float = Field(description="Root mean square of prediction less measurement, in the unit of the metric.")


class FitRecord(_Record):
    """The fit of `fastmix fit` to a swarm that somebody else trained. Figures are of the mean of the targets."""

    law: str = Field(
        description="The law that the mixture is best by: of those tried, the one with the highest rank correlation."
    )
    laws: dict[str, LawFigures] = Field(description="What each law is worth, by cross-validation over the runs.")
    targets: list[str]
    higher_is_better: bool
    num_runs: int
    noise_floor: float = Field(
        description="Mixtures whose predictions differ by less are not told apart: 1.645 * sqrt(2) times the law's error."
    )
    predicted: float = Field(description="The law's prediction for the mixture.")
    predicted_centre: float = Field(description="The same for the mean of the swarm's mixtures.")
    best_run: str = Field(description="The best run of the swarm within the bounds; of all runs where none is.")
    best_measured: float = Field(description="What that run came to.")
    made_from: str = Field(description="Hash of the two tables, the targets and the bounds.")


class Origin(_Record):
    """Hashes of what the mixture was made from; empty for one that was given."""

    catalog: str = ""
    recipe: str = ""
    trajectory: str = Field("", description="SHA-256 of the trajectory beside it.")


class Mixture(_Record):
    """Shares of tokens by source, or of another unit in a file that says so.

    `fastmix emit --mixture FILE` takes any JSON file with a `weights` object; the other fields say how a search found them.
    """

    schema_version: int = SCHEMA_VERSION
    weights: Shares = Field(min_length=1, description="Share of each source; sums to 1.")
    unit: WeightUnit = Field(
        "tokens",
        description="What the weights count: tokens, tokens that carry loss (loss_tokens), or examples. A search says tokens.",
    )
    shares: dict[WeightUnit, Shares] = Field(
        default_factory=dict,
        description="Of a search with prompts or conversations: what the weights come to in loss tokens and in examples.",
    )
    method: str = "given"
    binding: dict[str, str] = Field(
        default_factory=dict,
        description="Constraints that the answer lies at, by source or group: pinned, floor, ceiling, epoch cap, group min, group max.",
    )
    certainty: Certainty = Certainty()
    start: StartRecord = StartRecord()
    trials: TrialsRecord | None = Field(
        None,
        description="None where the scores alone decided. Of several searches, of all of them together; rounds are SEED:ROUND.",
    )
    search: SearchRecord = SearchRecord()
    target: TargetRecord = TargetRecord()
    made_from: Origin = Origin()
    fit: FitRecord | None = Field(None, description="Of a mixture that `fastmix fit` found.")

    def weights_K(self, sources: Sequence[str]) -> Float64s:
        """Weights in the order of `sources`, shape (K,).

        Raises:
            RecipeError: the names differ, or the weights are no shares.
        """
        check_shares(self.weights, where="mixture")
        missing = [name for name in sources if name not in self.weights]
        unknown = [name for name in self.weights if name not in sources]
        if missing or unknown:
            problem = f"has no weight for {', '.join(missing)}" if missing else f"has a weight for {', '.join(unknown)}"
            raise RecipeError(
                "", f"the mixture {problem}, but the catalog's sources are {', '.join(sources)}", "name each of them once"
            )
        return np.array([self.weights[name] for name in sources])


def load_mixture(path: Path) -> Mixture:
    """Read a mixture.

    Raises:
        RecipeError: no such file, wrong shape, a negative weight, or weights that do not sum to 1.
    """
    if not path.is_file():
        raise RecipeError(path, "there is no mixture", "run `fastmix search` first, or give one with --mixture FILE")
    content: Any = read_json(path)
    version = content.get("schema_version", SCHEMA_VERSION) if isinstance(content, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        remedy = "run `fastmix search --replace`, or keep nothing but its weights"
        raise RecipeError(path, f"mixture of schema version {version}, this is {SCHEMA_VERSION}", remedy)
    try:
        mixture = Mixture.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{path}: {where}", first["msg"], 'a mixture is {"weights": {NAME: SHARE}}') from error
    check_shares(mixture.weights, where=str(path))
    return mixture


def check_shares(weights: Shares, *, where: str) -> None:
    """Refuse weights that are negative, not finite, or do not sum to 1."""
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise RecipeError(f"{where}: weights.{name}", f"{weight} is not a share", "use a number from 0 to 1")
    total = math.fsum(weights.values())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise RecipeError(where, f"the weights sum to {total:.6g}, not 1", f"divide each of them by {total:.6g}")


def save_mixture(path: Path, mixture: Mixture) -> None:
    """Write a mixture atomically."""
    write_json(path, mixture.model_dump())
