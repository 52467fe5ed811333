"""How each method comes to its mixture, at which cost. Searches that train are kept by what decides them, like the proxies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.artefacts import hash_of, read_json, write_json
from fastmix_data.errors import MismatchError
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, load_catalog
from pipelines.compare.methods import Method
from pipelines.compare.proxies import OnTokens, ProxyJob, on_one_rank, training_identity
from train.baselines.cost import SearchCost, flops, matmul_parameters
from train.baselines.swarm import swarm_weights
from train.mixture.constraints import constraints_of
from train.mixture.stated import start_and_prior, stated_weights, swarm_centre

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Found:
    """A mixture, in the order of the catalog's sources, and what it cost to find."""

    weights: tuple[float, ...]
    cost: SearchCost


@dataclass(frozen=True)
class ReweightingJob:
    """DoGE or DoReMi on a proxy of the recipe's budget.

    Attributes:
        kind: doge or doremi.
    """

    recipe: Recipe
    kind: str

    @property
    def num_tokens(self) -> int:
        """Training tokens of its proxies."""
        reference = self._reference(load_catalog(self.recipe.paths.catalog))
        return reference.num_tokens * (2 if self.kind == "doremi" else 1)

    def path(self, catalog: Catalog) -> Path:
        """Where the result lies."""
        search = self.recipe.search
        identity = {**training_identity(self.recipe, catalog), "version": _FORMAT_VERSION, "kind": self.kind, "seed": search.seed}
        if self.kind == "doge":
            identity |= {"target": self.recipe.target.weights(), "target_batch": search.target_batch}
        else:
            identity |= {"reference": list(self._reference(catalog).weights)}
        return catalog.root / "compare" / "found" / f"{self.kind}-{hash_of(identity)[:20]}.json"

    def finished(self, catalog: Catalog) -> Found | None:
        """The result, if it is on disk."""
        path = self.path(catalog)
        if not path.exists():
            return None
        content = read_json(path)
        return Found(tuple(content["weights"].values()), SearchCost(**content["cost"]))

    def run(self, on_tokens: OnTokens) -> Found:
        """Search, in a process group of one rank."""
        from train.baselines.reweighting_rules import search_doge, search_doremi
        from train.proxy.training import load_proxy

        recipe, catalog = on_one_rank(self.recipe), load_catalog(self.recipe.paths.catalog)
        if self.kind == "doge":
            weights_K, cost = search_doge(recipe, catalog, on_tokens=on_tokens)
        else:
            job = self._reference(catalog)
            trained = job.run(on_tokens)
            reference = load_proxy(job.directory(catalog) / "proxy.pt", recipe, catalog)
            weights_K, cost = search_doremi(recipe, catalog, reference=reference, on_tokens=on_tokens)
            num_flops = flops(matmul_parameters(recipe, catalog), trained=trained.num_tokens)
            cost += SearchCost(trained.num_tokens, num_flops, trained.seconds)
        weights = dict(zip(catalog.sources, weights_K.tolist(), strict=True))
        write_json(self.path(catalog), {"weights": weights, "cost": asdict(cost)})
        return Found(tuple(weights.values()), cost)

    def _reference(self, catalog: Catalog) -> ProxyJob:
        """DoReMi's reference proxy, trained on the recipe's prior: uniform, or by size as in the paper."""
        prior_K = swarm_centre(self.recipe, catalog)
        return ProxyJob(self.recipe, tuple(prior_K.tolist()), self.recipe.search.seed, names=(), half="search")


def swarm_jobs(recipe: Recipe, catalog: Catalog, *, num_proxies: int) -> list[ProxyJob]:
    """The swarm's proxies, with the search's seed, measured on the half of each target that searches may see."""
    prior_K = swarm_centre(recipe, catalog)
    drawn_NK = swarm_weights(prior_K, num_mixtures=num_proxies, seed=recipe.search.seed)
    names = tuple(recipe.target.weights())
    return [ProxyJob(recipe, tuple(weights_K), recipe.search.seed, names, "search") for weights_K in drawn_NK.tolist()]


def stated_mixture(method: Method, recipe: Recipe, catalog: Catalog) -> Found:
    """uniform, proportional, or what the search is pulled to: no proxy is trained, though counting may take seconds."""
    started = time.monotonic()
    if method.kind != "prior":
        return Found(tuple(stated_weights(catalog, method.kind).tolist()), SearchCost())
    _, prior_K = start_and_prior(recipe, catalog)
    return Found(tuple(prior_K.tolist()), SearchCost(seconds=time.monotonic() - started))


def fit_swarm(method: Method, recipe: Recipe, catalog: Catalog, swarm: Sequence[ProxyJob]) -> Found:
    """RegMix's or Olmix's mixture from the finished runs of a swarm."""
    results = [job.finished(catalog) for job in swarm]
    assert all(result is not None for result in results)
    done = [result for result in results if result is not None]
    importance = recipe.target.weights()
    losses_GN = np.array([[result.losses[name] for result in done] for name in importance])
    importance_G = np.array(list(importance.values()))
    started = time.monotonic()
    weights_K = _fit(method, recipe, catalog, np.array([job.weights for job in swarm]), losses_GN, importance_G)
    trained = sum(result.num_tokens for result in done)
    measured = len(swarm) * len(importance) * recipe.search.eval_sequences * recipe.search.sequence_length
    cost = SearchCost(
        trained,
        flops(matmul_parameters(recipe, catalog), trained=trained, forward_only=measured),
        sum(result.seconds for result in done) + time.monotonic() - started,
    )
    return Found(tuple(weights_K.tolist()), cost)


def _fit(
    method: Method, recipe: Recipe, catalog: Catalog, weights_NK: Float64s, losses_GN: Float64s, importance_G: Float64s
) -> Float64s:
    prior_K, seed = swarm_centre(recipe, catalog), recipe.search.seed
    if method.kind == "regmix":
        from train.baselines.regmix import regmix_weights

        return regmix_weights(weights_NK, importance_G @ losses_GN, prior_K=prior_K, seed=seed)
    from train.baselines.olmix import fit_law, olmix_weights

    slopes_GK = np.array([fit_law(weights_NK, losses_N, seed=seed).slope_K for losses_N in losses_GN])
    constraints = constraints_of(recipe, catalog)
    return olmix_weights(slopes_GK, importance_G=importance_G, prior_K=prior_K, constraints=constraints)


def search_fastmix(recipe: Recipe, catalog: Catalog, *, quiet: bool) -> Found:
    """The recipe's own search: the workdir's if it is finished and of this recipe, else one in a folder of the comparison."""
    from train.search.artefacts import finished_mixture, recipe_hash
    from train.search.search import search

    try:
        mixture = finished_mixture(recipe, catalog, replace=False)
    except MismatchError:
        mixture = None
    if mixture is None:
        directory = catalog.root / "compare" / "searches" / recipe_hash(recipe, catalog)[:20]
        mixture = search(recipe.searching_in(directory), quiet=quiet).mixture
    return Found(tuple(mixture.weights_K(catalog.sources).tolist()), _cost_of(mixture, recipe, catalog))


def _cost_of(mixture: Mixture, recipe: Recipe, catalog: Catalog) -> SearchCost:
    """Tokens pass forward and backward; those of scored steps take one more matrix product per layer, as a forward pass does."""
    search = recipe.search
    scored = mixture.num_steps // search.update_interval * search.tokens_per_step
    num_flops = flops(matmul_parameters(recipe, catalog), trained=mixture.search_tokens, forward_only=scored)
    return SearchCost(mixture.search_tokens, num_flops, mixture.search_seconds)
