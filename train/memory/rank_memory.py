"""How many bytes a rank's training takes at most, from the model, the ZeRO stage and the number of ranks.

What ZeRO keeps follows from its stage (Rajbhandari et al., arXiv 1910.02054, section 5) and from the buffers that DeepSpeed lays out;
what a pass takes is counted in one of fake tensors, which do the operations without memory or arithmetic. `scripts/bench/memory.py`
holds both against what a real run takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

_FLOAT32 = 4
_GATHERED_AT_ONCE, _FETCHED_AT_ONCE = (
    1_000_000_000,
    50_000_000,
)  # parameters; DeepSpeed's max_live_parameters, prefetch_bucket_size


@dataclass(frozen=True)
class ZeroSpread:
    """How a proxy is spread.

    Attributes:
        zero_stage: as DeepSpeed runs it: bf16 takes 1 where the recipe says 0.
        num_ranks: that share what the stage shares.
        computes_in_bf16: parameters of passes have two bytes, else four.
        fuses_optimizer: whether a step makes no copies, as on a GPU.
        reduced_at_once: gradients that there is room for on their way to other ranks.
        keeps_optimizer: whether masters and moments are in the same memory as the model, and not offloaded.
    """

    zero_stage: int
    num_ranks: int
    computes_in_bf16: bool
    fuses_optimizer: bool
    reduced_at_once: int
    keeps_optimizer: bool = True

    def share(self, *, from_stage: int) -> float:
        """Part of something that a rank holds where stages from this one on divide it."""
        return 1 / self.num_ranks if self.zero_stage >= from_stage else 1.0


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        parameters, optimizer, buckets, remembered_gradient: that it holds all the time: parameters as passes use them; their float32
            masters and Adam's moments; rooms for gradients on their way; the target gradients that scores are averaged over.
        backward, scoring, step: what it holds beside these in a training pass, with activations and gradients; in a scoring pass, with
            activations and the target gradient; and while the optimiser steps.
    """

    parameters: int
    optimizer: int
    buckets: int
    remembered_gradient: int
    backward: int
    scoring: int
    step: int

    @property
    def most(self) -> int:
        """The highest point."""
        held = self.parameters + self.optimizer + self.buckets + self.remembered_gradient
        return held + max(self.backward, self.scoring, self.step)


def rank_memory(model: nn.Module, *, spread: ZeroSpread, num_pass_bytes: int, num_scored: int, remembers: bool) -> RankMemory:
    """Bytes that training of a model takes of each rank.

    Args:
        model: on any device, the meta device too.
        num_pass_bytes: activations and losses of a pass at their most, parameters and their gradients left out.
        num_scored: parameters that scores are taken in; 0 where nothing is scored.
        remembers: whether target gradients are averaged.
    """
    num_all = sum(parameter.numel() for parameter in model.parameters())
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    stage, size = spread.zero_stage, 2 if spread.computes_in_bf16 else _FLOAT32
    state_share, gradient_share, scored_share = (spread.share(from_stage=at) for at in (1, 1, 2))
    gradients, bucket = size * num_trained, size * spread.reduced_at_once
    masters = _FLOAT32 * num_trained if stage else 0
    target_gradient = int(_FLOAT32 * num_scored * scored_share)
    part_of_gradients = int(gradients * gradient_share)
    gathered = size * min(num_all, _GATHERED_AT_ONCE) if stage == 3 else 0
    on_the_way = size * min(num_all, _FETCHED_AT_ONCE) if stage == 3 else 0
    # A pass begins with what those before it left: stage 1 reduces when all micro-batches are done, stage 2 whenever a bucket is full.
    left = {0: gradients, 1: gradients + bucket, 2: part_of_gradients, 3: gathered}[stage]
    # It ends, its activations gone, with all of its gradients; of stage 3 parameters are fetched before there are activations.
    ended = {
        0: gradients + bucket,
        1: gradients + bucket + part_of_gradients,
        2: bucket + min(gradients, bucket) + part_of_gradients,
        3: gathered + max(on_the_way, min(gradients, bucket)),
    }[stage]
    # ZeRO steps one array of all its parameters, in float32; where the optimiser is not fused it makes two as large on the way.
    in_float32 = int(_FLOAT32 * num_trained * state_share * (1 if spread.fuses_optimizer else 3))
    step = {0: gradients, 1: part_of_gradients + in_float32, 2: part_of_gradients + in_float32, 3: in_float32}[stage]
    return RankMemory(
        parameters=int(size * num_all * spread.share(from_stage=3)),
        optimizer=int((masters + 2 * _FLOAT32 * num_trained) * state_share) if spread.keeps_optimizer else 0,
        # Stage 3 lays out its bucket and its part of the gradients once and for all.
        buckets=bucket + part_of_gradients if stage == 3 else 0,
        remembered_gradient=target_gradient if remembers else 0,
        backward=max(left + num_pass_bytes, ended),
        scoring=num_pass_bytes + gathered + target_gradient if num_scored else 0,
        step=step,
    )
