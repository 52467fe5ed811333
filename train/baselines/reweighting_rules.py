"""DoGE and DoReMi on a proxy: what each looks at during a step, and the searches they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastmix_data.arrays import Float64s
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from train.baselines.cost import SearchCost, flops, matmul_parameters
from train.baselines.doge import doge_scores, doge_update
from train.baselines.doremi import doremi_update
from train.baselines.reweighting import SourceSums, run_reweighting
from train.checkpoints.checkpoints import CheckpointPlan
from train.proxy.engine import ProxyEngine
from train.proxy.training import MicroBatch, ProxyPlan
from train.scores.hypergradient import HypergradientProbe
from train.target.target import Target


class DogeRule:
    """Gradient alignment of each source with a fresh target batch at every step, from the training pass itself."""

    def __init__(self, engine: ProxyEngine, target: Target, *, num_sources: int) -> None:
        """Score over all parameters, with the norm of each sequence's gradient."""
        self._engine, self._target = engine, target
        self._probe = HypergradientProbe(engine.module, scope="all", with_norms=True)
        self._alignment, self._norm = SourceSums(num_sources), SourceSums(num_sources)

    def begin(self) -> None:
        """Take the target gradient."""
        module = self._engine.module
        module.eval()
        self._probe.target_gradient(self._target.batch_losses(self._engine))
        module.train()

    @contextmanager
    def watch(self, batch: MicroBatch, factor_B: Tensor) -> Iterator[Callable[[Tensor], None]]:
        """Score the sequences of a pass."""
        with self._probe.scoring(batch.shape) as alignments:
            yield lambda _: None
            # The backward pass was of factor * loss; sources are compared by their own losses.
            unit_B = factor_B * self._engine.loss_scale
            self._alignment.add(batch.source_B, alignments().double() / unit_B, batch.labels_BT)
            self._norm.add(batch.source_B, self._probe.norms().double() / unit_B, batch.labels_BT)

    def update(self, weights_K: Float64s, *, learning_rate: float) -> Float64s:
        """DoGE's update; sources that no batch held yet have no norm."""
        alignment_K, norm_K = self._alignment.end_step(), self._norm.end_step()
        norm_K[norm_K == 0] = float("nan")
        return doge_update(weights_K, doge_scores(alignment_K, norm_K, learning_rate=learning_rate))

    def state_dict(self) -> dict[str, Any]:
        """Scores so far, and where the target's batches are."""
        return {
            "alignment": self._alignment.state_dict(),
            "norm": self._norm.state_dict(),
            "target": self._target.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._alignment.load_state_dict(state["alignment"])
        self._norm.load_state_dict(state["norm"])
        self._target.load_state_dict(state["target"])


class DoremiRule:
    """Excess loss per token over a reference proxy, clipped at 0."""

    def __init__(self, reference: ProxyEngine, *, num_sources: int) -> None:
        """Compare with a trained proxy on this process."""
        self._reference = reference
        self._reference.module.eval()
        self._excess = SourceSums(num_sources)

    def begin(self) -> None:
        """Nothing is needed before the passes."""

    @contextmanager
    def watch(self, batch: MicroBatch, factor_B: Tensor) -> Iterator[Callable[[Tensor], None]]:
        """Compare the pass's losses with the reference's."""
        del factor_B

        def compare(losses_BT: Tensor) -> None:
            with torch.no_grad():
                expected_BT = self._reference.bare_token_losses(batch.inputs, batch.labels_BT)
            # Clipped token by token before the mean, as in the paper: tokens that got easier must not hide the others.
            excess_BT = (losses_BT - expected_BT).clamp_min(0)
            self._excess.add(batch.source_B, excess_BT.sum(dim=1), batch.labels_BT)

        yield compare

    def update(self, weights_K: Float64s, *, learning_rate: float) -> Float64s:
        """DoReMi's update."""
        del learning_rate
        return doremi_update(weights_K, self._excess.end_step())

    def state_dict(self) -> dict[str, Any]:
        """Excess losses so far."""
        return self._excess.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._excess.load_state_dict(state)


def search_doge(
    plan: ProxyPlan,
    target: TargetSection,
    search: SearchSection,
    *,
    on_tokens: Callable[[int], None],
    kept: CheckpointPlan | None = None,
) -> tuple[Float64s, SearchCost]:
    """The mixture that DoGE finds for a target with one proxy, shape (K,), and its cost.

    DoGE's rule on scores from the training pass; gradients are not clipped one by one, and |g| of a source is the mean over its sequences.
    """
    # The norm of a sequence's gradient is of products of any two of its tokens.
    engine = plan.build_engine(seed=plan.training.seed, whole_logits=True)
    held_out = Target.of_plan(plan, target, search, num_ranks=1)
    rule = DogeRule(engine, held_out, num_sources=len(plan.catalog.sources))
    weights_K, seconds = run_reweighting(plan, engine=engine, rule=rule, on_tokens=on_tokens, kept=kept)
    engine.close()
    trained, num_parameters = plan.training.num_tokens, matmul_parameters(plan)
    total = trained + held_out.num_tokens_read
    # scoring is one more matrix product per layer and token, as a forward pass is
    return weights_K, SearchCost(total, flops(num_parameters, trained=total, forward_only=trained), seconds)


def search_doremi(
    plan: ProxyPlan, *, reference: ProxyEngine, on_tokens: Callable[[int], None], kept: CheckpointPlan | None = None
) -> tuple[Float64s, SearchCost]:
    """The mixture that DoReMi finds with one proxy beside a trained reference, shape (K,), and the cost but for the reference's training.

    It does not look at the target: it evens out how far sources are from what the reference reaches on them.
    """
    engine = plan.build_engine(seed=plan.training.seed)
    rule = DoremiRule(reference, num_sources=len(plan.catalog.sources))
    weights_K, seconds = run_reweighting(plan, engine=engine, rule=rule, on_tokens=on_tokens, kept=kept)
    engine.close()
    trained = plan.training.num_tokens
    return weights_K, SearchCost(trained, flops(matmul_parameters(plan), trained=trained, forward_only=trained), seconds)
