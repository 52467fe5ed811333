"""Plain training of a proxy on a fixed mixture, and its losses on targets: what confirms a mixture, and what a swarm is made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fastmix_data.arrays import Float64s
from fastmix_data.errors import FastmixError
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import Half, SequenceReader
from train.proxy.engine import ProxyEngine
from train.proxy.losses import sequence_losses, to_tensors
from train.proxy.model import build_proxy, proxy_config
from train.search.proxy_run import learning_rate_at
from train.target.target import Target


@dataclass(frozen=True)
class PlainRun:
    """A proxy trained on a mixture.

    Attributes:
        engine: the trained proxy.
        num_tokens: tokens it trained on.
        seconds: time of training, set-up left out.
    """

    engine: ProxyEngine
    num_tokens: int
    seconds: float

    def save(self, path: Path) -> None:
        """Write the parameters, from which `load_proxy` makes the proxy again."""
        torch.save(self.engine.module.state_dict(), path)


def train_on_mixture(
    recipe: Recipe,
    catalog: Catalog,
    weights_K: Float64s,
    *,
    seed: int,
    on_step: Callable[[int, ProxyEngine], None] | None = None,
) -> PlainRun:
    """Train a fresh proxy for the recipe's search budget on fixed weights, on all ranks of the process group together.

    Sequences are drawn by the weights; model, initial weights, learning rate and batch are those of a search with this seed, and so is
    the part of the sources that is seen with match_repetition.

    Args:
        weights_K: shares of tokens in the order of the catalog's sources, shape (K,).
        seed: fixes the proxy's initial weights and the order of the data; replaces the recipe's.
        on_step: called on every rank after each optimiser step with the number of steps done; its time is not training time.

    Raises:
        FastmixError: the loss is not finite.
    """
    search = recipe.search
    engine = ProxyEngine(
        _model(recipe, catalog, seed),
        search=search,
        deepspeed=recipe.deepspeed,
        micro_batch=search.micro_batch or search.global_batch // dist.get_world_size(),
    )
    reader = SequenceReader(
        catalog,
        sources=catalog.sources,
        split="train",
        sequence_length=search.sequence_length,
        share_seen=recipe.share_seen,
    )
    sampler = MixtureSampler(
        reader.num_sequences_K,
        sources=catalog.sources,
        global_batch=search.global_batch,
        seed=seed,
        fingerprint=catalog.fingerprint,
        window=search.locality_window,
    )
    factor = 1 / (search.global_batch * float(weights_K @ reader.mean_loss_tokens_K))
    started, seconds_paused = time.monotonic(), 0.0
    for step in range(search.num_steps):
        plan = sampler.next(weights_K).slice(engine.rank, engine.world_size)
        for number in range(engine.num_micro_batches):
            part = plan.slice(number, engine.num_micro_batches)
            inputs, labels = to_tensors(*reader.read(part.source_B, part.sequence_B), device=engine.device)
            loss = sequence_losses(engine.forward(inputs), labels).sum() * factor
            engine.backward(loss)
            engine.step(learning_rate_at(step, search), last_micro_batch=number == engine.num_micro_batches - 1)
        if on_step is not None:
            paused = time.monotonic()
            on_step(step + 1, engine)
            seconds_paused += time.monotonic() - paused
    if not np.isfinite(float(engine.sum_over_ranks(loss.detach()))):
        raise FastmixError(f"the proxy's loss is not finite; lower search.learning_rate (now {search.learning_rate})")
    num_tokens = search.num_steps * search.tokens_per_step
    return PlainRun(engine, num_tokens, time.monotonic() - started - seconds_paused)


def load_proxy(path: Path, recipe: Recipe, catalog: Catalog) -> ProxyEngine:
    """The proxy whose parameters `PlainRun.save` wrote."""
    model = _model(recipe, catalog, seed=0)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    search = recipe.search
    return ProxyEngine(model, search=search, deepspeed=recipe.deepspeed, micro_batch=search.micro_batch or search.global_batch)


def target_losses(engine: ProxyEngine, recipe: Recipe, catalog: Catalog, *, names: list[str], half: Half) -> dict[str, float]:
    """Mean token loss in nats on a fixed sample of each named held-out split.

    Args:
        names: sources or target files; every one gets `search.eval_sequences` sequences, the same for every proxy.
    """
    search = recipe.search
    target = Target(
        catalog,
        weights=dict.fromkeys(names, 1 / len(names)),
        sequence_length=search.sequence_length,
        target_batch=search.target_batch,
        micro_batch=search.micro_batch or search.global_batch,
        seed=0,
    )
    losses_G = target.evaluate_each(engine, half=half, num_sequences=search.eval_sequences)
    return dict(zip(names, losses_G.tolist(), strict=True))


def _model(recipe: Recipe, catalog: Catalog, seed: int) -> nn.Module:
    config = proxy_config(
        recipe.proxy, resolve=recipe.resolve, vocab_size=catalog.info.vocab_size, sequence_length=recipe.search.sequence_length
    )
    return build_proxy(recipe.proxy, config=config, resolve=recipe.resolve, seed=seed)
