"""The recipe's search: the proxy run that learns the mixture."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fastmix_data.recipe.constraints import ConstraintsSection
from fastmix_data.recipe.section import Section
from fastmix_data.units import TokenCount

_PULLED_TRAVEL, _FREE_TRAVEL, _SLOWEST_LOGITS, _FASTEST_LOGITS = 7.5, 20.0, 0.05, 0.3
_PULL = 3.0


def _require_some(shares: Any) -> Any:
    if isinstance(shares, dict) and not any(shares.values()):
        raise ValueError("give at least one source a share above 0")
    return shares


# A mixture by name. Ratios count, not their sum; a source that is not named gets a thousandth of the uniform share.
NamedMixture = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
StartingMixture = Annotated[Literal["bigram", "uniform", "proportional"] | NamedMixture, AfterValidator(_require_some)]


class StopSection(Section):
    """When a search may end before its budget."""

    tolerance: float = Field(
        gt=0, lt=1, description="End when the averaged mixture moved by less than this share (half the sum of changes)."
    )


class SearchSection(Section):
    """The proxy run that learns the mixture."""

    token_budget: TokenCount = Field(description="Tokens the proxy trains on; with the batch it sets the number of steps.")
    sequence_length: int = Field(128, ge=8, description="Tokens of a training sequence; divides shards.block_tokens.")
    global_batch: int = Field(32, ge=1, description="Sequences of one optimiser step over all ranks.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Sequences of one forward pass on one rank; all of the rank's share when not given.",
    )
    learning_rate: float = Field(3e-3, gt=0, description="Peak AdamW learning rate; warm-up, then cosine.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    min_lr_fraction: float = Field(0.1, ge=0, le=1, description="Learning rate at the end, relative to the peak.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay of matrices.")
    adam_betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW averaging coefficients.")
    gradient_clipping: float = Field(1.0, ge=0, description="Largest gradient norm; 0 for none.")
    seed: int = Field(0, ge=0, description="Fixes the proxy's initial weights and the order of the data.")
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
    initial_weights: StartingMixture = Field(
        "bigram",
        description="Where the mixture starts, brought within the constraints: what is best for a bigram model of the sources, counted "
        "before training; uniform, by size in tokens, or given by name (relative; a source not named gets a thousandth of the "
        "uniform share).",
    )
    trial_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of token_budget for trials of the start: six short runs, in pairs, decide between the bigram mixture and its "
        "cube, which is more concentrated; 0 for none. There are none either where one would be shorter than 30 steps, where the "
        "targets' weights move, or from another start.",
    )
    prior: StartingMixture | None = Field(
        None,
        description="Mixture that prior_strength pulls to, as initial_weights are stated; where the mixture starts when not given. RegMix, "
        "Olmix and DoReMi in `fastmix compare` start from it too, from uniform where it is bigram or not given.",
    )
    prior_strength: float | None = Field(
        None,
        ge=0,
        description="Weight of KL(mixture || prior) in units of the scores' spread; larger is closer to the prior. When not given, 3, and "
        "0 where the targets' weights move (worst_case, not_worse_than), for the prior knows only those they start from.",
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
    locality_window: int = Field(
        0,
        ge=0,
        description="Shuffle sequences within windows of this many, for storage with slow seeks; 0 shuffles all.",
    )

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.num_steps < 2:
            raise ValueError(
                f"token_budget {self.token_budget} is less than two steps of {self.global_batch} x {self.sequence_length} "
                "tokens; raise it or lower global_batch"
            )
        if self.num_steps < self.weights_warmup_steps + self.update_interval:
            raise ValueError(
                f"token_budget {self.token_budget} is {self.num_steps} steps, which end before the first update of the mixture (step "
                f"{self.weights_warmup_steps + self.update_interval}); raise it, or lower global_batch, weights_warmup_steps or "
                "update_interval"
            )
        return self

    @property
    def num_steps(self) -> int:
        """Optimiser steps the budget pays for."""
        return self.token_budget // self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one optimiser step over all ranks."""
        return self.global_batch * self.sequence_length

    @property
    def pull(self) -> float:
        """`prior_strength`, or what it is when not given."""
        return _PULL if self.prior_strength is None else self.prior_strength

    @property
    def logit_rate(self) -> float:
        """`weights_learning_rate`, or what it is when not given."""
        if self.weights_learning_rate is not None:
            return self.weights_learning_rate
        num_updates = max(1, self.num_steps // self.update_interval - self.weights_warmup_steps // self.update_interval)
        travel = _PULLED_TRAVEL if self.pull else _FREE_TRAVEL
        return min(max(travel / num_updates, _SLOWEST_LOGITS), _FASTEST_LOGITS)
