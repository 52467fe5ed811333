"""The recipe's search: how the mixture is learned while a proxy trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.section import Section
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.weight_units import WeightUnit

FEWEST_TRIAL_STEPS = 30  # a proxy that made fewer has learned little more than which tokens there are
# How far a logit may travel in a whole run, in nats, and bounds of a single move.
_TRAVEL, _SLOWEST_LOGITS, _FASTEST_LOGITS = 20.0, 0.05, 0.3


@dataclass(frozen=True)
class MixtureRule:
    """How a run samples its sources and moves its mixture.

    Attributes:
        exploration: sources are sampled by (1 - exploration) * weights + exploration * uniform, and the loss weights make up for it.
        optimizer: exponentiated gradient, with scores in units of their spread, or Adam on the logits.
        precondition: whether the target gradient is divided by the root of the optimiser's second moment: the metric it steps in.
        smoothing: share of a source's earlier evidence kept when it is seen again.
        logit_rate: size of a move of the logits; None goes by the number of updates.
    """

    exploration: float
    optimizer: Literal["exponentiated_gradient", "adam"]
    precondition: bool
    smoothing: float
    logit_rate: float | None

    def rate(self, num_updates: int) -> float:
        """Size of one move of the logits, so that in a short run one can travel about as far as in a long one."""
        if self.logit_rate is not None:
            return self.logit_rate
        return min(max(_TRAVEL / max(1, num_updates), _SLOWEST_LOGITS), _FASTEST_LOGITS)


RULES = {
    "fastmix": MixtureRule(0.0, "exponentiated_gradient", precondition=True, smoothing=0.5, logit_rate=None),
    # FastMix (arXiv 2606.14971): uniform sampling, mixture ratios as loss weights, AdamW on the logits.
    "paper": MixtureRule(1.0, "adam", precondition=False, smoothing=0.0, logit_rate=0.01),
}
# What search.method: paper stands for beside its rule: keys that a recipe may still give.
PAPER: dict[str, Any] = {
    "hypergradient": "head",
    "update_interval": 20,
    "target_memory": 0.0,
    "initial_weights": "uniform",
    "trial_fraction": 0.0,
}


def _require_a_share(shares: Any) -> Any:
    if isinstance(shares, dict) and not any(shares.values()):
        raise ValueError("give at least one source a share above 0")
    return shares


# A mixture by name. Ratios count, not their sum; a source that is not named gets a thousandth of the uniform share.
NamedMixture = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
StartingMixture = Annotated[Literal["count", "uniform", "proportional"] | NamedMixture, AfterValidator(_require_a_share)]


class StopSection(Section):
    """When a search may end before its budget."""

    tolerance: float = Field(
        gt=0, lt=1, description="End when the averaged mixture moved by less than this share (half the sum of changes)."
    )


class SearchSection(Section):
    """How the mixture is learned while a proxy trains; `training` says how the proxy does."""

    method: Literal["fastmix", "paper"] = Field(
        "fastmix",
        description="fastmix: start from counts, move the mixture along scores while a proxy trains, then let short trials decide. "
        "paper: the rule of FastMix as published (uniform start and sampling, ratios as loss weights, AdamW on the logits at 0.01 every "
        "20 steps, scores of the output head, no trials); a key that you give still counts.",
    )
    hypergradient: Literal["all", "last_block", "head"] = Field(
        "all",
        description="Parameters on which target and source gradients are compared: all, the last block and what follows it, or the "
        "output head alone.",
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
    weight_unit: WeightUnit = Field(
        "tokens",
        description="What a share of a stated mixture counts (uniform, and by name in initial_weights): tokens, tokens that "
        "carry loss, or examples. Results, bounds and caps are shares of tokens; results give the other two beside.",
    )
    initial_weights: StartingMixture = Field(
        "count",
        description="Where the mixture starts, brought within the constraints: what is best by counts of the sources, made before "
        "training; uniform, by size in tokens, or given by name (relative; a source not named gets a thousandth of the uniform share). "
        "Uniform when not given with proxy.checkpoint, which knows the counts already. RegMix, Olmix and DoReMi in `fastmix compare` "
        "start from it too, from uniform where it is count.",
    )
    trial_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of training.token_budget for trials: short proxies, each trained on one of the mixtures proposed (the start, "
        "what the scores came to, what counts say or a more concentrated form of it, proportional), in pairs of one seed. The answer is "
        "what they say is best. 0 for none, as where their share is below 240 steps or the targets' weights move; the scores decide then.",
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
    average_fraction: float = Field(
        0.5, gt=0, le=1, description="Last share of the trajectory whose average is what the scores propose."
    )
    eval_sequences: int = Field(256, ge=1, description="Sequences per target half on which the loss is reported.")
    checkpoint_interval: int | None = Field(
        None,
        ge=1,
        description="Steps between checkpoints of a proxy in training (the search's own, the reference run, trials, proxies of a "
        "comparison), from which a stopped or killed command goes on; one every 5 minutes when not given. They are written while "
        "training goes on, and the last two are kept.",
    )

    @property
    def rule(self) -> MixtureRule:
        """How the mixture is moved."""
        return RULES[self.method]

    def check_steps(self, training: TrainingSection, *, targets_move: bool) -> None:
        """Refuse a budget that ends before the mixture is first moved.

        Raises:
            ValueError: says what to raise or lower.
        """
        first_update, left = self.update_interval, training.num_steps
        if left < first_update:
            raise ValueError(
                f"training.token_budget {training.token_budget} is {left} steps, which end before the first update of the mixture (step "
                f"{first_update}); raise it, or lower training.global_batch or search.update_interval"
            )
        left -= self.trial_steps(training, targets_move=targets_move)
        if left < first_update:
            raise ValueError(
                f"search.trial_fraction {self.trial_fraction:g} leaves {left} steps to the scores, which end before the first update of "
                f"the mixture (step {first_update}); lower it, or raise training.token_budget"
            )

    def trial_steps(self, training: TrainingSection, *, targets_move: bool) -> int:
        """Optimiser steps of all trials together; 0 where two rounds of four shortest trials would not fit."""
        steps = int(self.trial_fraction * training.num_steps)
        return steps if steps >= 8 * FEWEST_TRIAL_STEPS and not targets_move else 0
