"""MixMin's search: a proxy of each source alone, together of the search's budget, and the mixture of them that fits a target."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import RecipeError
from fastmix_data.shards.sequences import Half
from fastmix_data.units import format_count
from pipelines.compare.proxies import OnTokens, ProxyJob, on_a_worker
from pipelines.compare.searches import FoundMixture, proxy_job
from train.baselines.cost import SearchCost, flops, matmul_parameters
from train.mixture.mixmin import mixmin_weights
from train.search.plan import SearchPlan
from train.target.target_likelihoods import SequenceLikelihoods, sequence_likelihoods

_FEWEST_STEPS = 20  # of a proxy; with fewer all of them are as they were made
_MOST_SEQUENCES = 512  # of each target: the standard error of a share is at most 0.022
_HALF: Half = "search"


@dataclass(frozen=True)
class OneSourceResult:
    """What a proxy of one source cost, and how likely it finds the sequences of each target; seconds are of training and measuring."""

    num_tokens: int
    seconds: float
    likelihoods: dict[str, SequenceLikelihoods]


@dataclass(frozen=True)
class OneSourceJob:
    """Train a proxy on one source, unless that was done before, and measure how likely it finds the sequences of some targets.

    Attributes:
        trained: the proxy, kept like any other, and what was measured beside it.
        names: of the targets.
    """

    trained: ProxyJob
    names: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of its training."""
        return self.trained.num_tokens

    def finished(self) -> OneSourceResult | None:
        """The result, if all of it is on disk."""
        trained, kept = self.trained.finished(), self._kept()
        if trained is None or any(name not in kept for name in self.names):
            return None
        seconds = trained.seconds + sum(float(kept[name]["seconds"]) for name in self.names)
        likelihoods = {
            name: SequenceLikelihoods(np.array(kept[name]["nats"]), np.array(kept[name]["num_loss_tokens"]))
            for name in self.names
        }
        return OneSourceResult(trained.num_tokens, seconds, likelihoods)

    def run(self, on_tokens: OnTokens) -> OneSourceResult:
        """Do what is missing, in a process group of one rank.

        Raises:
            FastmixError: the proxy's loss is not finite.
        """
        self.trained.run(on_tokens)
        plan, kept = on_a_worker(self.trained.plan), self._kept()
        missing = [name for name in self.names if name not in kept]
        if missing:
            engine = plan.build_engine(seed=0, parameters=self.trained.folder.proxy)
            for name in missing:
                started = time.monotonic()
                found = sequence_likelihoods(engine, plan, name=name, half=_HALF, most_sequences=_MOST_SEQUENCES)
                kept[name] = {
                    "nats": found.nats_N.round(6).tolist(),
                    "num_loss_tokens": found.num_loss_tokens_N.tolist(),
                    "seconds": round(time.monotonic() - started, 3),
                }
            engine.close()
            write_json(self.trained.folder.likelihoods, {self._key: kept})
        result = self.finished()
        assert result is not None
        return result

    def _kept(self) -> dict[str, dict[str, Any]]:
        path = self.trained.folder.likelihoods
        return dict(read_json(path).get(self._key, {})) if path.exists() else {}

    @property
    def _key(self) -> str:
        return f"{_HALF}, {_MOST_SEQUENCES} sequences at most"


def check_mixmin(plan: SearchPlan) -> None:
    """Refuse a budget that makes no proxy of each source.

    Raises:
        RecipeError: says how much would.
    """
    training, num_sources = plan.proxy.training, len(plan.catalog.sources)
    if _steps_of_each(plan) < _FEWEST_STEPS:
        needed = _FEWEST_STEPS * num_sources * training.tokens_per_step
        raise RecipeError(
            "training.token_budget",
            f"mixmin trains a proxy on each source, and {training.num_steps} steps shared by {num_sources} sources "
            f"are {_steps_of_each(plan)} each, fewer than {_FEWEST_STEPS}",
            f"raise it to {needed} ({format_count(needed)}), or leave mixmin out",
        )


def mixmin_jobs(plan: SearchPlan) -> list[OneSourceJob]:
    """A proxy of each source, with the search's seed, measured on the half of each target that searches may see."""
    of_each = replace(plan, proxy=plan.proxy.with_steps(_steps_of_each(plan)))
    names = tuple(plan.target.weights())
    return [
        OneSourceJob(proxy_job(of_each, alone_K, names=(), half=_HALF), names) for alone_K in np.eye(len(plan.catalog.sources))
    ]


def fit_mixmin(plan: SearchPlan, jobs: Sequence[OneSourceJob]) -> FoundMixture:
    """MixMin's mixture from finished proxies; every target counts by its weight, and its sequences alike, as loss per token."""
    results = [result for job in jobs if (result := job.finished()) is not None]
    assert len(results) == len(jobs)
    started = time.monotonic()
    log_likelihoods, importance, num_sequences = [], [], 0
    for name, weight in plan.target.weights().items():
        num_loss_tokens_N = results[0].likelihoods[name].num_loss_tokens_N
        with_loss_N = num_loss_tokens_N > 0
        nats_NK = np.stack([result.likelihoods[name].nats_N for result in results], axis=1)
        log_likelihoods.append(nats_NK[with_loss_N])
        importance.append(weight / with_loss_N.sum() / num_loss_tokens_N[with_loss_N])
        num_sequences += len(num_loss_tokens_N)
    weights_K = mixmin_weights(
        np.concatenate(log_likelihoods),
        importance_N=np.concatenate(importance),
        constraints=plan.constraints,
        labels_K=plan.proxy.training_data().mean_loss_tokens_K,
    )
    seconds = time.monotonic() - started + sum(result.seconds for result in results)
    trained = sum(result.num_tokens for result in results)
    measured = len(jobs) * num_sequences * plan.proxy.training.sequence_length
    num_flops = flops(matmul_parameters(plan.proxy), trained=trained, forward_only=measured)
    return FoundMixture(tuple(weights_K.tolist()), SearchCost(trained, num_flops, seconds))


def _steps_of_each(plan: SearchPlan) -> int:
    return plan.proxy.training.num_steps // len(plan.catalog.sources)
