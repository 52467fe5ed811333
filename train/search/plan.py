"""What a search goes by, worked out once from a recipe and a catalog: nothing after it looks at the recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from fastmix_data.errors import InputError, MismatchError
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.search import PAPER, SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.results.searched_recipe import SearchedEmit, SearchedRecipe
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.shards.held_out_halves import check_halves
from fastmix_data.workdir import SearchFolder
from train.checkpoints.checkpoints import CheckpointPlan
from train.mixture.constraints import MixtureConstraints, constraints_of
from train.proxy.causality import check_causal
from train.proxy.compiled_blocks import blocks_to_compile
from train.proxy.example_check import check_examples_apart
from train.proxy.loss_model import whole_logits_remark
from train.proxy.recomputation import check_recomputation
from train.proxy.training import ProxyPlan, check_divides, micro_batch
from train.scores.score_check import check_scores
from train.scores.scored_modules import Scope


@dataclass(frozen=True)
class SearchPlan:
    """A search, or several that differ in their seed.

    Attributes:
        folder: where its results lie.
        proxy: with the whole budget, trials included.
        sections: of the recipe, saved beside the result; their hash is the search's identity.
    """

    folder: SearchFolder
    proxy: ProxyPlan
    target: TargetSection
    search: SearchSection
    constraints: MixtureConstraints
    sections: SearchedRecipe

    @property
    def catalog(self) -> Catalog:
        """The data."""
        return self.proxy.catalog

    @cached_property
    def recipe_hash(self) -> str:
        """Hash of the sections of the recipe that the search depends on."""
        return self.sections.hash

    @property
    def trial_steps(self) -> int:
        """Optimiser steps of all trials together; 0 where there are none."""
        return self.search.trial_steps(self.proxy.training, targets_move=self.target.reference_mixture is not None)

    @property
    def main(self) -> ProxyPlan:
        """The proxy of the run in which the mixture moves, with the budget that trials leave."""
        return self.proxy.with_steps(self.proxy.training.num_steps - self.trial_steps)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run must share with a checkpoint to go on from it; ranks and how they share the work may be others."""
        return {"recipe": self.sections.continued_hash, "data": self.catalog.fingerprint}

    def checkpoints_of(self, run: str) -> CheckpointPlan:
        """Where a proxy of the search is saved, and when."""
        return CheckpointPlan(self.folder.checkpoints_of(run), self.identity, self.search.checkpoint_interval)

    def in_folder(self, folder: SearchFolder) -> SearchPlan:
        """The same search with its results elsewhere."""
        return replace(self, folder=folder)

    def as_published(self) -> SearchPlan:
        """The search by FastMix's own rule (search.method: paper), with the same data, proxy and bounds."""
        search = SearchSection.model_validate({**self.search.model_dump(), **PAPER, "method": "paper"})
        return replace(self, search=search, sections=self.sections.model_copy(update={"search": search}))

    def of_seeds(self, num_seeds: int) -> list[SearchPlan]:
        """The search with training.seed, training.seed + 1 and so on, each with a folder of its own in the search's folder."""
        first = self.proxy.training.seed
        return [self._with_seed(seed) for seed in range(first, first + num_seeds)]

    def _with_seed(self, seed: int) -> SearchPlan:
        training = self.proxy.training.with_seed(seed)
        return replace(
            self,
            folder=self.folder.of_seed(seed),
            proxy=replace(self.proxy, training=training),
            sections=self.sections.model_copy(update={"training": training}),
        )


def plan_search(recipe: Recipe, catalog: Catalog | None = None) -> SearchPlan:
    """The search that a recipe asks for.

    Args:
        catalog: of the recipe's workdir; read when not given.

    Raises:
        RecipeError: a section is missing, or no mixture meets the constraints.
        InfeasibleBudgetError: emit.token_budget is beyond the epoch caps.
        MismatchError: there are no shards yet, or they were made from another recipe.
    """
    target, training = recipe.required("target"), recipe.required("training")
    catalog = (catalog or load_catalog(recipe.paths.catalog)).read_from(recipe.store)
    if catalog.info.block_tokens != recipe.shards.block_tokens or set(catalog.sources) != set(recipe.sources):
        raise MismatchError(catalog.root, "the catalog was made from another recipe", "run `fastmix preprocess --replace` first")
    constraints = constraints_of(recipe.search.constraints, catalog, recipe.emit)
    production = recipe.required("emit").token_budget if recipe.search.match_repetition else None
    proxy = ProxyPlan(catalog, recipe.proxy, recipe.base, training, recipe.deepspeed, production)
    # Of emit only what the search goes by, so that another budget of production does not make a finished search a stranger.
    emit = None
    if recipe.emit is not None and constraints.capped_K.any():
        emit = SearchedEmit(token_budget=recipe.emit.token_budget, max_epochs=recipe.emit.max_epochs)
    elif recipe.emit is not None and proxy.share_seen < 1:
        emit = SearchedEmit(token_budget=recipe.emit.token_budget)
    sections = SearchedRecipe(
        target=target, proxy=recipe.proxy, deepspeed=recipe.deepspeed, training=training, search=recipe.search, emit=emit
    )
    return SearchPlan(recipe.paths.search, proxy, target, recipe.search, constraints, sections)


def check_batches(training: TrainingSection, search: SearchSection, *, num_ranks: int) -> None:
    """Refuse batches that cannot be divided over the ranks.

    Raises:
        RecipeError: names the key and a number that can be.
    """
    micro_batch(training, num_ranks)
    check_divides("search.target_batch", search.target_batch, num_ranks)


def check_search(plan: SearchPlan, *, num_ranks: int) -> None:
    """Refuse what cannot work, before a model is built.

    Raises:
        RecipeError: a batch cannot be divided over the ranks, or the proxy does not fit the tokenizer.
        InputError: a source or a half of a target is smaller than one sequence, or has no token that carries loss.
    """
    check_batches(plan.proxy.training, plan.search, num_ranks=num_ranks)
    reader = plan.proxy.training_data()
    for number in np.flatnonzero(reader.mean_loss_tokens_K == 0).tolist():
        raise InputError(f"source {plan.catalog.sources[number]}", "none of its training tokens carries loss", "remove it")
    # Preprocessing has seen to it too, but for targets that were named since.
    check_halves(plan.catalog, list(plan.target.weights()), sequence_length=plan.proxy.training.sequence_length)
    plan.proxy.config  # noqa: B018 (made and checked when first asked for)


def check_planned_proxy(proxy: ProxyPlan, *, scope: Scope | None, num_ranks: int) -> str:
    """`check_proxy` of a plan's proxy, on a model that is thrown away; returns what is to be said of it, often nothing."""
    training, model = proxy.training, proxy.build_model(seed=proxy.training.seed)
    if training.compile:
        blocks_to_compile(model)
    check_proxy(model, scope=scope, activation_checkpointing=training.activation_checkpointing, **proxy.kept_apart)
    return whole_logits_remark(model, shape=(micro_batch(training, num_ranks), training.sequence_length))


def check_proxy(
    model: nn.Module,
    *,
    scope: Scope | None,
    has_examples: bool,
    document_attention: bool,
    activation_checkpointing: bool,
) -> None:
    """Refuse a proxy that cannot be trained or scored, before anything is.

    Args:
        model: as `build_proxy` makes it; one that is thrown away afterwards, for its parameters may change.
        scope: of the scores; None where nothing is scored.
        has_examples: whether examples of which only part carries loss share sequences.
        document_attention, activation_checkpointing: as in the recipe's training.

    Raises:
        RecipeError: it does not run, is no causal language model, has blocks that cannot be computed once more, uses its parameters in a
            way that scores cannot follow, or lets examples or documents see each other that must not.
    """
    check_causal(model)
    if activation_checkpointing:
        check_recomputation(model)
    if scope is not None:
        check_scores(model, scope=scope)
    if has_examples:
        check_examples_apart(model, remedy="choose one that does not, for example model_type llama")
    elif document_attention:
        check_examples_apart(
            model, remedy="leave training.document_attention out, or choose one that does not, for example llama"
        )
