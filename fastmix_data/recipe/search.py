"""The recipe's search: how the mixture is learned while a proxy trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.section import Section
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.weight_units import WeightUnit

# How far a logit may travel in a whole search, in nats, with and without a pull; and bounds of a single move.
_PULLED_TRAVEL, _FREE_TRAVEL, _SLOWEST_LOGITS, _FASTEST_LOGITS = 7.5, 20.0, 0.05, 0.3
_PULL = 3.0
NUM_TRIALS, _FEWEST_TRIAL_STEPS = 6, 30


def _require_a_share(shares: Any) -> Any:
    if isinstance(shares, dict) and not any(shares.values()):
        raise ValueError("give at least one source a share above 0")
    return shares


# A mixture by name. Ratios count, not their sum; a source that is not named gets a thousandth of the uniform share.
NamedMixture = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
StartingMixture = Annotated[Literal["bigram", "uniform", "proportional"] | NamedMixture, AfterValidator(_require_a_share)]


class StopSection(Section):
    """When a search may end before its budget."""

    tolerance: float = Field(
        gt=0, lt=1, description="End when the averaged mixture moved by less than this share (half the sum of changes)."
    )


class SearchSection(Section):
    """How the mixture is learned while a proxy trains; `training` says how the proxy does."""

    exploration: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Sampling is (1 - exploration) * weights + exploration * uniform; the loss weights make up for it.",
    )
    hypergradient: Literal["all", "last_block", "head"] = Field(
        "all",
        description="Parameters on which target and source gradients are compared: all, the last block and what follows it, or the "
        "output head alone.",
    )
    precondition: bool = Field(
        True,
        description="Divide the target gradient by the root of the optimiser's second moment, damped: the metric it steps in, in which a "
        "source is worth less as it is learned.",
    )
    score: Literal["inner_product", "per_gradient_norm"] = Field(
        "inner_product",
        description="A source's score: its alignment with the target gradient per loss token, or per unit of its sequences' gradient norm.",
    )
    update_interval: int = Field(16, ge=1, description="Steps between two updates of the mixture.")
    target_batch: int = Field(16, ge=1, description="Target sequences of one update, over all ranks; fresh ones every time.")
    target_memory: float = Field(
        0.8,
        ge=0,
        lt=1,
        description="Share of the earlier target gradients that is kept in the one sources are scored against: more is less noise, and "
        "slower to follow.",
    )
    weights_optimizer: Literal["exponentiated_gradient", "adam"] = Field(
        "exponentiated_gradient",
        description="Rule that moves the mixture: exponentiated gradient with scores in units of their spread, or Adam on the logits.",
    )
    weights_learning_rate: float | None = Field(
        None,
        gt=0,
        description="Size of one move of the mixture's logits. When not given, 7.5 over the number of updates, or 20 "
        "where prior_strength is 0, within 0.05 and 0.3: a logit can travel about as far in a short search as in a long one.",
    )
    shrink_scores: bool = Field(
        True,
        description="Shrink scores by the share of their spread that is signal, so that where sources differ by chance only the pull "
        "decides. Off without a pull, which takes back what early scores moved by chance, and where the targets' weights move.",
    )
    weights_warmup_steps: int = Field(20, ge=0, description="Steps before the first update; scores are taken from the start.")
    score_smoothing: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Memory of a source's score: share of the old evidence kept when the source is seen again.",
    )
    weight_unit: WeightUnit = Field(
        "tokens",
        description="What a share of a stated mixture counts (uniform, and by name in initial_weights and prior): tokens, tokens that "
        "carry loss, or examples. Results, bounds and caps are shares of tokens; results give the other two beside.",
    )
    initial_weights: StartingMixture = Field(
        "bigram",
        description="Where the mixture starts, brought within the constraints: what is best for a bigram model of the sources, counted "
        "before training; uniform, by size in tokens, or given by name (relative; a source not named gets a thousandth of the "
        "uniform share). Uniform when not given with proxy.checkpoint, which knows bigrams already.",
    )
    trial_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of training.token_budget for trials of the start: six short runs, in pairs, decide between the bigram "
        "mixture and its cube, which is more concentrated; 0 for none. There are none either where one would be shorter than 30 steps, "
        "where the targets' weights move, or from another start.",
    )
    prior: StartingMixture | None = Field(
        None,
        description="Mixture that prior_strength pulls to, as initial_weights are stated; where the mixture starts when not given. RegMix, "
        "Olmix and DoReMi in `fastmix compare` start from it too, from uniform where it is bigram or not given.",
    )
    prior_strength: float | None = Field(
        None,
        ge=0,
        description="Weight of KL(mixture || prior) in units of the scores' spread; larger is closer to the prior. When not given, 3; "
        "0 from a checkpoint, as uniform knows no target, and where the targets' weights move (worst_case, not_worse_than), as "
        "the prior knows only those they start from.",
    )
    constraints: ConstraintsSection = Field(default_factory=ConstraintsSection)
    match_repetition: bool = Field(
        False,
        description="Let the proxy see a fixed part of each source, the search's tokens over emit.token_budget, so that at equal shares "
        "it repeats as often as in production.",
    )
    stop: StopSection | None = Field(
        None, description="End early once the mixture stands still; without it the budget is used up."
    )
    average_fraction: float = Field(1.0, gt=0, le=1, description="Last share of the trajectory that is averaged into the answer.")
    eval_sequences: int = Field(256, ge=1, description="Sequences per target half on which the loss is reported.")
    checkpoint_interval: int = Field(200, ge=1, description="Steps between checkpoints, from which a stopped search goes on.")

    def check_steps(self, training: TrainingSection, *, targets_move: bool) -> None:
        """Refuse a budget that ends before the mixture is first moved.

        Raises:
            ValueError: says what to raise or lower.
        """
        first_update, left = self.weights_warmup_steps + self.update_interval, training.num_steps
        if left < first_update:
            raise ValueError(
                f"training.token_budget {training.token_budget} is {left} steps, which end before the first update of the mixture (step "
                f"{first_update}); raise it, or lower training.global_batch, search.weights_warmup_steps or search.update_interval"
            )
        left -= NUM_TRIALS * self.trial_steps(training, targets_move=targets_move)
        if left < first_update:
            raise ValueError(
                f"search.trial_fraction {self.trial_fraction:g} leaves {left} steps to the search, which end before the first update of "
                f"the mixture (step {first_update}); lower it, or raise training.token_budget"
            )

    def trial_steps(self, training: TrainingSection, *, targets_move: bool) -> int:
        """Optimiser steps of each of the NUM_TRIALS trials of the start; 0 where there are none."""
        steps = int(self.trial_fraction * training.num_steps) // NUM_TRIALS
        return steps if self.initial_weights == "bigram" and not targets_move and steps >= _FEWEST_TRIAL_STEPS else 0

    @property
    def pull(self) -> float:
        """`prior_strength`, or what it is when not given."""
        return _PULL if self.prior_strength is None else self.prior_strength

    def logit_rate(self, num_steps: int) -> float:
        """`weights_learning_rate`, or what it is in a run of this many steps when not given."""
        if self.weights_learning_rate is not None:
            return self.weights_learning_rate
        num_updates = max(1, num_steps // self.update_interval - self.weights_warmup_steps // self.update_interval)
        travel = _PULLED_TRAVEL if self.pull else _FREE_TRAVEL
        return min(max(travel / num_updates, _SLOWEST_LOGITS), _FASTEST_LOGITS)
