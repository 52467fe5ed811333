"""The target: a weighted mean of mean token losses on held-out sequences, of which the search sees one half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmix_data.arrays import Float64s, Int64s
from fastmix_data.permutation import derive_keys, permute
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import Half, SequenceReader
from train.proxy.engine import ProxyEngine
from train.proxy.losses import on_device, sampling_weights, to_tensors
from train.proxy.training import ProxyPlan, micro_batch
from train.side_by_side.stacked import StackedProxies
from train.target.target_weights import ReferenceLosses, TargetBalance, TargetLossEstimates

_EVALUATION_STREAM, _TARGET_STREAM = 11, 12
_MOVING_EXPLORATION = 0.25


class Target:
    """Fresh target batches for hypergradients, and the loss on a fixed sample of each half.

    Attributes:
        names: of the targets, in the order of every array over them.
        num_tokens_read: target tokens that the search has used so far.
        reference: losses of the reference run, if there is one.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        weights: dict[str, float],
        sequence_length: int,
        target_batch: int,
        micro_batch: int,
        seed: int,
        document_attention: bool = False,
        balance: TargetBalance | None = None,
        reference: ReferenceLosses | None = None,
    ) -> None:
        """Look up the held-out data.

        Args:
            weights: of each target by name, summing to 1.
            target_batch: sequences of one batch over all ranks.
            micro_batch: sequences of one pass on one rank.
            document_attention: as in `training.document_attention`.
            balance: moves the weights; they are fixed without it.
            reference: losses that a moving balance is measured against.

        Raises:
            InputError: a target has no sequence of this length in one of the halves.
        """
        self.names = names = list(weights)
        self._balance = balance or TargetBalance(np.array([weights[name] for name in names]))
        self.reference = reference
        assert reference is not None or not self._balance.moves
        self._estimates = TargetLossEstimates(len(names))
        self._batch_sums_G2 = torch.zeros(len(names), 2, dtype=torch.float64)
        self._readers: dict[Half, SequenceReader] = {
            half: SequenceReader(
                catalog,
                sources=names,
                split="valid",
                sequence_length=sequence_length,
                half=half,
                document_attention=document_attention,
            )
            for half in ("search", "unseen")
        }
        reader = self._readers["search"]
        if reader.mean_loss_tokens_K.min() <= 0:
            raise AssertionError("a target without loss tokens passed the check of the search")
        self._sampler = MixtureSampler(
            reader.num_sequences_K,
            sources=names,
            global_batch=target_batch,
            seed=int(derive_keys(seed, _TARGET_STREAM)[0] >> np.uint64(33)),
            fingerprint=catalog.fingerprint,
        )
        self._target_batch, self._micro_batch, self._seed = target_batch, micro_batch, seed
        self.num_tokens_read = 0
        self._length = sequence_length

    @classmethod
    def of_plan(
        cls,
        plan: ProxyPlan,
        target: TargetSection,
        search: SearchSection,
        *,
        num_ranks: int,
        reference: ReferenceLosses | None = None,
    ) -> Target:
        """The target of a search; its weights move as the recipe says where there is a reference to hold the losses against."""
        return cls(
            plan.catalog,
            weights=target.weights(),
            sequence_length=plan.training.sequence_length,
            target_batch=search.target_batch,
            micro_batch=micro_batch(plan.training, num_ranks),
            seed=plan.training.seed,
            document_attention=plan.training.document_attention,
            balance=TargetBalance.of_section(target) if reference is not None else None,
            reference=reference,
        )

    @property
    def weights_G(self) -> Float64s:
        """Weights of the targets now, shape (G,)."""
        return self._balance.weights_G

    @property
    def losses(self) -> list[float | None]:
        """Each target's loss as the batches so far tell it; None for one that was in no batch."""
        return self._estimates.losses()

    def batch_losses(self, engine: ProxyEngine) -> Iterator[Tensor]:
        """This rank's parts of the loss on a fresh batch: scalars that add up to it over micro-batches and ranks.

        A target's sequences are drawn by a share q and its summed token losses multiplied by w / q and divided by batch * (mean loss
        tokens per sequence), so that the parts add up to sum_g w_g * (mean token loss of g) in expectation. Fixed weights are
        their own shares; where they move, q = 0.75 w + 0.25 uniform, so that a target out of favour still has an estimate.
        """
        weights_G = self.weights_G
        sampled_G = sampling_weights(weights_G, exploration=_MOVING_EXPLORATION) if self._balance.moves else weights_G
        plan = self._sampler.next(sampled_G).slice(engine.rank, engine.world_size)
        self.num_tokens_read += self._target_batch * self._length
        reader = self._readers["search"]
        factor_G = weights_G / sampled_G / (self._target_batch * reader.mean_loss_tokens_K)
        self._batch_sums_G2 = torch.zeros(len(weights_G), 2, dtype=torch.float64, device=engine.device)
        for start in range(0, len(plan.source_B), self._micro_batch):
            source_B = plan.source_B[start : start + self._micro_batch]
            losses_B, num_loss_tokens_B = _losses(engine, reader, source_B, plan.sequence_B[start : start + self._micro_batch])
            sums_B2 = torch.stack([losses_B.detach().double(), num_loss_tokens_B.double()], dim=1)
            self._batch_sums_G2.index_add_(0, on_device(source_B, engine.device), sums_B2)
            yield (losses_B * on_device(factor_G[source_B], engine.device).to(losses_B)).sum()

    def count_batch(self, engine: ProxyEngine) -> None:
        """After `batch_losses` is used up on every rank: add the batch to the estimates of each target's loss."""
        self._estimates.add(engine.sum_over_ranks(self._batch_sums_G2).cpu().numpy())

    def rebalance(self, engine: ProxyEngine, *, step: int) -> None:
        """Where the weights move and `step` is one of the reference's: measure each target's excess and move them."""
        reference = self.reference
        if reference is None or not self._balance.moves or step not in reference.steps_S:
            return
        losses_G = self.evaluate_each(engine, half="search", num_sequences=reference.num_sequences)
        self.num_tokens_read += self.num_evaluated_tokens(reference.num_sequences)
        self._balance.update(losses_G - reference.at(step))

    def num_evaluated_tokens(self, num_sequences: int) -> int:
        """Tokens of an evaluation on the search half."""
        return int(np.minimum(self._readers["search"].num_sequences_K, num_sequences).sum()) * self._length

    def evaluate_each(self, engine: ProxyEngine, *, half: Half, num_sequences: int, skip: int = 0) -> Float64s:
        """Loss of each target on a fixed sample of a half, in nats per loss token, shape (G,), in the order of the weights given.

        Args:
            skip: sequences of each target to leave out before; beyond the last one it begins anew.
        """
        sums_G2 = torch.zeros(len(self.names), 2, dtype=torch.float64, device=engine.device)
        was_training = engine.module.training
        engine.module.eval()
        with torch.no_grad():
            read = self.evaluated(half=half, num_sequences=num_sequences, skip=skip)
            for group, (reader, source_N, sequence_N) in enumerate(read):
                sums_G2[group] = self._sum_losses(engine, reader, source_N, sequence_N)
        engine.module.train(was_training)
        sums = engine.sum_over_ranks(sums_G2).cpu().numpy()
        means_G: Float64s = sums[:, 0] / np.maximum(sums[:, 1], 1)
        return means_G

    def evaluate_stacked(self, proxies: StackedProxies, *, half: Half, num_sequences: int, skip: int = 0) -> Float64s:
        """What `evaluate_each` finds for each of N proxies on one device, in passes of all of them, shape (N, G)."""
        losses_GN = []
        for reader, source_N, sequence_N in self.evaluated(half=half, num_sequences=num_sequences, skip=skip):
            sums_N, num_loss_tokens = torch.zeros(proxies.num_proxies, dtype=torch.float64, device=proxies.device), 0
            # No pass keeps anything for a gradient, so that twice as many sequences as in a step take less memory.
            for start in range(0, len(sequence_N), 2 * self._micro_batch):
                part = slice(start, start + 2 * self._micro_batch)
                read = reader.read(source_N[part], sequence_N[part])
                sums_N += proxies.sequence_losses(*to_tensors(read, device=proxies.device)).double().sum(dim=1)
                num_loss_tokens += int(read.carries_loss_BT.sum())
            losses_GN.append((sums_N / max(1, num_loss_tokens)).tolist())
        return np.array(losses_GN).T

    def evaluated(self, *, half: Half, num_sequences: int, skip: int = 0) -> Iterator[tuple[SequenceReader, Int64s, Int64s]]:
        """Where the fixed sample of each target is read: the reader, and sources and numbers of its sequences, both of shape (N,)."""
        reader = self._readers[half]
        for group, available in enumerate(reader.num_sequences_K.tolist()):
            key, count = derive_keys(self._seed, _EVALUATION_STREAM, group), min(num_sequences, available)
            sequence_N = permute((skip + np.arange(count)) % available, size=available, key=key)
            yield reader, np.full(len(sequence_N), group, np.int64), sequence_N

    def _sum_losses(self, engine: ProxyEngine, reader: SequenceReader, source_N: Int64s, sequence_N: Int64s) -> Tensor:
        """Summed loss and number of loss tokens over this rank's sequences; every rank makes as many passes (ZeRO-3 needs it)."""
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        per_pass = self._micro_batch * engine.world_size
        for start in range(0, len(sequence_N), per_pass):
            mine = sequence_N[start : start + per_pass][engine.rank :: engine.world_size]
            weight = float(len(mine) > 0)
            mine = mine if len(mine) else sequence_N[:1]
            losses_B, num_loss_tokens_B = _losses(engine, reader, source_N[: len(mine)], mine)
            sums += weight * torch.stack([losses_B.double().sum(), num_loss_tokens_B.double().sum()])
        return sums

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "sampler": self._sampler.state_dict(),
            "num_tokens_read": self.num_tokens_read,
            "balance": self._balance.state_dict(),
            "estimates": self._estimates.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._sampler.load_state_dict(state["sampler"])
        self.num_tokens_read = int(state["num_tokens_read"])
        self._balance.load_state_dict(state["balance"])
        self._estimates.load_state_dict(state["estimates"])


def target_losses(
    engine: ProxyEngine, plan: ProxyPlan, *, names: Sequence[str], half: Half, num_sequences: int
) -> dict[str, float]:
    """Mean token loss in nats on a fixed sample of each named held-out split, on this process alone.

    Args:
        names: sources or target files; every one gets `num_sequences` sequences, the same for every proxy.
    """
    losses_G = _target_of_nobody(plan, names).evaluate_each(engine, half=half, num_sequences=num_sequences)
    return dict(zip(names, losses_G.tolist(), strict=True))


def stacked_target_losses(
    proxies: StackedProxies, plan: ProxyPlan, *, names: Sequence[str], half: Half, num_sequences: int
) -> list[dict[str, float]]:
    """What `target_losses` finds for each of several proxies, in passes of all of them."""
    losses_NG = _target_of_nobody(plan, names).evaluate_stacked(proxies, half=half, num_sequences=num_sequences)
    return [dict(zip(names, losses_G, strict=True)) for losses_G in losses_NG.tolist()]


def _target_of_nobody(plan: ProxyPlan, names: Sequence[str]) -> Target:
    return Target(
        plan.catalog,
        weights=dict.fromkeys(names, 1 / len(names)),
        sequence_length=plan.training.sequence_length,
        target_batch=1,
        micro_batch=micro_batch(plan.training, 1),
        seed=0,  # not the search's: the sample must not depend on who searched
        document_attention=plan.training.document_attention,
    )


def _losses(engine: ProxyEngine, reader: SequenceReader, source_B: Int64s, sequence_B: Int64s) -> tuple[Tensor, Tensor]:
    """Summed token losses and number of loss tokens of each sequence, both of shape (B,)."""
    sequences = reader.read(source_B, sequence_B)
    inputs, labels = to_tensors(sequences, device=engine.device)
    num_loss_tokens_B = on_device(sequences.carries_loss_BT.sum(axis=1), engine.device)
    return engine.bare_sequence_losses(inputs, labels), num_loss_tokens_B
