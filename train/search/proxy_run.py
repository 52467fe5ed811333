"""One rank's search run: the inner loop trains the model, the outer loop moves the mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmix_data.arrays import Float64s
from fastmix_data.permutation import derive_keys
from fastmix_data.progress import Advance
from fastmix_data.recipe.search import SearchSection
from fastmix_data.results.trajectory import Trajectory, TrajectoryRow
from fastmix_data.sampler import MixtureSampler
from train.checkpoints.tensor_files import Runs, SavedTensors, equal_share
from train.mixture.constraints import MixtureConstraints
from train.mixture.optimizer import MixtureOptimizer, logit_gradient
from train.mixture.simplex import uniform
from train.proxy.engine import ProxyEngine
from train.proxy.losses import loss_weights, on_device, sampling_weights, to_tensors
from train.proxy.training import MicroBatch, MixtureTraining, ProxyPlan, not_finite
from train.scores.hypergradient import HypergradientProbe
from train.scores.parameter_shares import Spread
from train.scores.running_scores import SourceScores
from train.search.stopping import StandStill, find_stand_still
from train.target.target import Target

_SCORED_STREAM = 13
_TARGET = "target gradient/"  # in checkpoints


@dataclass
class _Evidence:
    """Sums over this rank's sequences: of the scored batch by source, and of the mixture's loss since the last update."""

    alignment_K: Tensor
    divisor_K: Tensor
    loss_K: Tensor
    train_loss: Tensor
    num_steps: int = 0

    @classmethod
    def empty(cls, num_sources: int, device: torch.device) -> _Evidence:
        zeros_3K = torch.zeros(3, num_sources, dtype=torch.float64, device=device)
        return cls(zeros_3K[0], zeros_3K[1], zeros_3K[2], torch.zeros(1, dtype=torch.float64, device=device))


class ProxyRun:
    """Everything one rank holds during a search.

    Attributes:
        initial_K: the mixture before the first update, within the constraints, shape (K,).
        trajectory: the mixture after each update.
        still: why the search ended before its budget; None if it did not.
    """

    def __init__(
        self,
        plan: ProxyPlan,
        *,
        search: SearchSection,
        engine: ProxyEngine,
        target: Target,
        initial_K: Float64s,
        constraints: MixtureConstraints | None = None,
    ) -> None:
        """Set up training, scores and mixture at step 0.

        Args:
            initial_K: weights to start from, shape (K,), on the simplex.
            constraints: kept by the mixture from the start; None for none.
        """
        self._search, self._section, self._engine, self._target = search, plan.training, engine, target
        self._constraints = constraints
        self._training = MixtureTraining(plan, engine, seed=plan.training.seed)
        spread = Spread(engine.rank, engine.world_size, sharded=engine.shards_gradients)
        self._probe = HypergradientProbe(engine.module, scope=search.hypergradient, memory=search.target_memory, spread=spread)
        reader, num_sources = self._training.reader, len(initial_K)
        self._uniform_K = uniform(num_sources)
        # Sequences of their own are scored, equally many of each source: of a training batch, a source with a small share has next to none.
        self._scored = MixtureSampler(
            reader.num_sequences_K,
            sources=plan.catalog.sources,
            global_batch=plan.training.global_batch,
            seed=int(derive_keys(plan.training.seed, _SCORED_STREAM)[0] >> np.uint64(33)),
            fingerprint=plan.catalog.fingerprint,
        )
        self._scores = SourceScores(num_sources, smoothing=search.rule.smoothing)
        self.mixture = MixtureOptimizer(
            initial_K,
            rule=search.rule.optimizer,
            learning_rate=search.rule.rate(plan.training.num_steps // search.update_interval),
            project=self.within_bounds,
        )
        self.initial_K = self.mixture.weights_K
        self._evidence = _Evidence.empty(num_sources, self._engine.device)
        self.trajectory = Trajectory()
        self.still: StandStill | None = None

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self._training.step

    def run(
        self,
        *,
        advance: Advance,
        stop_asked: Callable[[], bool],
        after_update: Callable[[], None],
        updated: Callable[[TrajectoryRow], None] = lambda _: None,
    ) -> bool:
        """Train to the end of the budget, to a mixture that stands still, or to the first update after a stop was asked for on any rank.

        Args:
            after_update: called where another step follows; no evidence is pending then that a checkpoint would lose.
            updated: called after each update, before a checkpoint has it.

        Returns:
            Whether the search is complete.
        """
        num_steps = self._section.num_steps
        while self.step < num_steps and self.still is None:
            scored, stopping = self.search_step(stop_asked)
            advance(self._section.tokens_per_step, note=self._note() if scored else "")
            if scored:
                updated(self.trajectory.rows[-1])
            if scored and (still := self._find_stand_still()):
                self.still = still
                return True
            if stopping:
                return False
            if scored and self.step < num_steps:
                after_update()
        return True

    def search_step(self, stop_asked: Callable[[], bool] = lambda: False) -> tuple[bool, bool]:
        """One optimiser step, followed by scores of the sources and an update of the mixture when the interval is over.

        Returns:
            Whether sources were scored, and whether a stop was asked for on any rank (known at scored steps only).
        """
        self.plain_step()
        scored, stopping = self.step % self._search.update_interval == 0, False
        if scored:
            target_loss = self._take_target_gradient()
            self._score_sources()
            stopping = self._update(target_loss, stop_asked=stop_asked())
        self._target.rebalance(self._engine, step=self.step)
        return scored, stopping

    def plain_step(self) -> None:
        """One step of training on the mixture as it stands."""
        weights_K, exploration, interval = self.mixture.weights_K, self._search.rule.exploration, self._search.update_interval
        factor_K = loss_weights(
            weights_K,
            exploration=exploration,
            mean_loss_tokens_K=self._training.reader.mean_loss_tokens_K,
            global_batch=self._section.global_batch,
        )
        self._training.train_step(
            sampling_weights(weights_K, exploration=exploration),
            lambda batch: self._train_on(batch, factor_K),
            steps_alike=min(interval - self.step % interval, self._section.num_steps - self.step),
        )
        self._evidence.num_steps += 1

    def _train_on(self, batch: MicroBatch, factor_K: Float64s) -> None:
        engine = self._engine
        losses_B = engine.sequence_losses(batch.inputs, batch.labels_BT)
        loss = (losses_B * on_device(factor_K[batch.source_B], engine.device).to(losses_B)).sum()
        self._evidence.train_loss += loss.detach()  # no .item(): it would make a GPU wait
        engine.backward(loss)

    def _note(self) -> str:
        row = self.trajectory.rows[-1] if self.trajectory.rows else None
        return f"train {row.train_loss:.3f}, target {row.target_loss:.3f}" if row else ""

    def _take_target_gradient(self) -> float:
        """Gradient of a fresh target batch, summed over ranks, into the probe's mean; returns the batch's loss."""
        total = torch.zeros(1, dtype=torch.float64, device=self._engine.device)
        module = self._engine.module
        module.eval()  # dropout would only add noise

        def losses() -> Iterator[Tensor]:
            for loss in self._target.batch_losses(self._engine):
                total.add_(loss.detach())
                yield loss

        self._probe.target_gradient(losses())
        self._probe.remember()
        module.train()
        self._target.count_batch(self._engine)
        if self._search.rule.precondition and (moments := self._engine.second_moments(self._probe.parameters)) is not None:
            self._probe.precondition(moments)
        return float(self._engine.sum_over_ranks(total))

    def _score_sources(self) -> None:
        """Alignments of a balanced batch with the target gradient; no parameter moves."""
        engine, evidence, module = self._engine, self._evidence, self._engine.module
        mine = self._scored.next(self._uniform_K).slice(engine.rank, engine.world_size)
        module.eval()
        for number in range(engine.num_micro_batches):
            part = mine.slice(number, engine.num_micro_batches)
            sequences = self._training.reader.read(part.source_B, part.sequence_B)
            inputs, labels_BT = to_tensors(sequences, device=engine.device)
            with self._probe.scoring((labels_BT.shape[0], labels_BT.shape[1])) as alignments:
                losses_B = engine.bare_sequence_losses(inputs, labels_BT)
                self._probe.backward(losses_B.sum())
                alignment_B = alignments().double()
            source_B = on_device(part.source_B, engine.device)
            num_loss_tokens_B = on_device(sequences.carries_loss_BT.sum(axis=1).astype(np.float64), engine.device)
            evidence.alignment_K.index_add_(0, source_B, alignment_B)
            evidence.divisor_K.index_add_(0, source_B, num_loss_tokens_B)
            evidence.loss_K.index_add_(0, source_B, losses_B.detach().double())
        module.train()
        self._probe.release()

    def _update(self, target_loss: float, *, stop_asked: bool) -> bool:
        """Reduce the evidence of all ranks and move the mixture; returns whether any rank was asked to stop."""
        evidence, num_sources = self._evidence, len(self._uniform_K)
        # One collective for everything, the question whether to stop included, so that all ranks stop at the same step.
        packed = torch.cat(
            [
                evidence.alignment_K,
                evidence.divisor_K,
                evidence.loss_K,
                evidence.train_loss,
                evidence.train_loss.new_tensor([float(stop_asked)]),
            ]
        )
        reduced = self._engine.sum_over_ranks(packed).cpu().numpy()
        train_loss = float(reduced[-2]) / max(1, evidence.num_steps)
        if not np.isfinite(reduced).all() or not math.isfinite(target_loss):
            raise not_finite(self._section, step=self.step)
        alignment_K, divisor_K, loss_K = reduced[:-2].reshape(3, num_sources)
        self._scores.add(alignment_K, divisor_K)
        self._evidence = _Evidence.empty(num_sources, self._engine.device)
        scores_K = self._move_mixture()
        self.trajectory.rows.append(
            TrajectoryRow(
                step=self.step,
                tokens=self.step * self._section.tokens_per_step,
                weights=self.mixture.weights_K.tolist(),
                scores=scores_K.tolist(),
                train_loss=train_loss,
                target_loss=target_loss,
                target_weights=self._target.weights_G.tolist(),
                target_losses=self._target.losses,
                alignment=alignment_K.tolist(),
                divisor=divisor_K.tolist(),
                loss=loss_K.tolist(),
            )
        )
        return bool(reduced[-1] > 0)

    def _move_mixture(self) -> Float64s:
        """One move of the mixture along the scores as they stand, which are returned, shape (K,)."""
        weights_K = self.mixture.weights_K
        scores_K = self._scores.estimates(weights_K)
        self.mixture.step(logit_gradient(weights_K, scores_K, loss_density_K=self._training.reader.mean_loss_tokens_K))
        return scores_K

    def _find_stand_still(self) -> StandStill | None:
        return find_stand_still(self.trajectory, step=self.step, num_steps=self._section.num_steps, search=self._search)

    @property
    def averaged_since(self) -> float:
        """Step after which the trajectory is averaged into the answer, counted back from the steps that were done."""
        return (1 - self._search.average_fraction) * self.step

    def within_bounds(self, weights_K: Float64s) -> Float64s:
        """The nearest mixture within the constraints, shape (K,)."""
        return self._constraints.project(weights_K) if self._constraints is not None else weights_K

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state, the same on all ranks: checkpoints are taken right after an update, when no evidence is pending."""
        return {
            "training": self._training.state_dict(),
            "scored": self._scored.state_dict(),
            "target": self._target.state_dict(),
            "scores": self._scores.state_dict(),
            "mixture": self.mixture.state_dict(),
            "trajectory": self.trajectory.state(),
            "target_weight": self._probe.tensors()["weight"],
        }

    def tensors(self) -> Runs:
        """This rank's runs of the part of the state that is large."""
        engine, kept = self._engine, self._probe.tensors()["shares"]
        if not engine.shards_gradients:
            kept = {
                name: equal_share(values, rank=engine.rank, world_size=engine.world_size) for name, (_, values) in kept.items()
            }
        return {f"{_TARGET}{name}": share for name, share in kept.items()}

    def load_state_dict(self, state: dict[str, Any], *, tensors: SavedTensors) -> None:
        """Go on where `state_dict` and `tensors` were taken, on any number of ranks."""
        self._probe.load_tensors({"weight": state["target_weight"], "sums": tensors.below(_TARGET)})
        self._training.load_state_dict(state["training"])
        self._scored.load_state_dict(state["scored"])
        self._target.load_state_dict(state["target"])
        self._scores.load_state_dict(state["scores"])
        self.mixture.load_state_dict(state["mixture"])
        self.trajectory = Trajectory.from_state(state["trajectory"])
        # A run that stood still is saved where trials follow.
        self.still = self._find_stand_still()
