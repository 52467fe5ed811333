"""The proxy run that DoGE and DoReMi share: sources sampled alike, losses weighted by a mixture that moves at every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastmix_data.arrays import Float64s, Int64s
from fastmix_data.errors import FastmixError
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import SequenceReader
from train.proxy.engine import ProxyEngine
from train.proxy.losses import IGNORED, loss_weights, sequence_losses, to_tensors
from train.proxy.model import build_proxy, proxy_config
from train.search.proxy_run import learning_rate_at


class SourceSums:
    """Per source: a sum over the sequences seen in the current step, over its loss tokens; what was not seen keeps its last mean."""

    def __init__(self, num_sources: int) -> None:
        """Start without anything seen: zeros."""
        self.mean_K: Float64s = np.zeros(num_sources)
        self._sum_K, self._num_tokens_K = np.zeros(num_sources), np.zeros(num_sources)

    def add(self, source_B: Int64s, value_B: Tensor, labels_BT: Tensor) -> None:
        """Add one value for each sequence, shape (B,), with the loss tokens it was summed over."""
        np.add.at(self._sum_K, source_B, value_B.detach().double().cpu().numpy())
        np.add.at(self._num_tokens_K, source_B, (labels_BT != IGNORED).sum(dim=1).cpu().numpy())

    def end_step(self) -> Float64s:
        """Means per loss token, shape (K,)."""
        seen_K = self._num_tokens_K > 0
        self.mean_K = np.where(seen_K, self._sum_K / np.maximum(self._num_tokens_K, 1), self.mean_K)
        self._sum_K[:] = self._num_tokens_K[:] = 0
        return self.mean_K


class Rule(Protocol):
    """How a step's passes move the mixture."""

    def watch(
        self, inputs_BT: Tensor, labels_BT: Tensor, source_B: Int64s, factor_B: Tensor
    ) -> AbstractContextManager[Callable[[Tensor], None]]:
        """Around a training pass, forward and backward, of the loss sum_i factor_i * (token losses of sequence i).

        The context is a function to be given the pass's logits, shape (B, T, V).
        """
        ...

    def begin(self) -> None:
        """Before a step's passes."""
        ...

    def update(self, weights_K: Float64s, *, learning_rate: float) -> Float64s:
        """The next weights, after a step's passes."""
        ...


def fresh_engine(recipe: Recipe, catalog: Catalog) -> ProxyEngine:
    """The proxy that a search of this recipe starts from, on this process alone."""
    search = recipe.search
    config = proxy_config(
        recipe.proxy, resolve=recipe.resolve, vocab_size=catalog.info.vocab_size, sequence_length=search.sequence_length
    )
    model = build_proxy(recipe.proxy, config=config, resolve=recipe.resolve, seed=search.seed)
    return ProxyEngine(model, search=search, deepspeed=recipe.deepspeed, micro_batch=search.micro_batch or search.global_batch)


def run_reweighting(
    recipe: Recipe, catalog: Catalog, *, engine: ProxyEngine, rule: Rule, on_tokens: Callable[[int], None]
) -> tuple[Float64s, float]:
    """Train for the search's budget under a mixture that starts uniform and moves after every step.

    Both papers move the mixture before the step's own gradient is taken; here it is one step behind, so that a step costs one pass.

    Args:
        on_tokens: told the tokens of each step.

    Returns:
        The average of the weights over the steps, shape (K,), and the seconds of training.

    Raises:
        FastmixError: the loss is not finite.
    """
    assert dist.get_world_size() == 1
    search, num_sources = recipe.search, len(catalog.sources)
    reader = SequenceReader(
        catalog, sources=catalog.sources, split="train", sequence_length=search.sequence_length, share_seen=recipe.share_seen
    )
    sampler = MixtureSampler(
        reader.num_sequences_K,
        sources=catalog.sources,
        global_batch=search.global_batch,
        seed=search.seed,
        fingerprint=catalog.fingerprint,
        window=search.locality_window,
    )
    uniform_K = np.full(num_sources, 1 / num_sources)
    weights_K, total_K, loss = uniform_K, np.zeros(num_sources), torch.zeros(())
    started = time.monotonic()
    for step in range(search.num_steps):
        factor_K = loss_weights(
            weights_K, exploration=1.0, mean_loss_tokens_K=reader.mean_loss_tokens_K, global_batch=search.global_batch
        )
        plan, learning_rate = sampler.next(uniform_K), learning_rate_at(step, search)
        rule.begin()
        for number in range(engine.num_micro_batches):
            part = plan.slice(number, engine.num_micro_batches)
            inputs, labels = to_tensors(*reader.read(part.source_B, part.sequence_B), device=engine.device)
            factor_B = torch.from_numpy(factor_K[part.source_B]).to(engine.device)
            with rule.watch(inputs, labels, part.source_B, factor_B) as see:
                logits = engine.forward(inputs)
                see(logits)
                losses_B = sequence_losses(logits, labels)
                loss = (losses_B * factor_B.to(losses_B)).sum()
                engine.backward(loss)
            engine.step(learning_rate, last_micro_batch=number == engine.num_micro_batches - 1)
        weights_K = rule.update(weights_K, learning_rate=learning_rate)
        total_K = total_K + weights_K
        on_tokens(search.tokens_per_step)
    if not (np.isfinite(float(loss.detach())) and np.isfinite(total_K).all()):
        raise FastmixError(f"the proxy's loss is not finite; lower search.learning_rate (now {search.learning_rate})")
    return total_K / total_K.sum(), time.monotonic() - started
