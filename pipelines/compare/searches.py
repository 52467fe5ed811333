"""How each method comes to its mixture, at which cost. Searches that train are kept by what decides them, like the proxies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import FastmixError, RecipeError
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.sequences import Half
from fastmix_data.units import format_count
from fastmix_data.workdir import Workdir
from pipelines.compare.methods import AROUND_COUNT, Method
from pipelines.compare.proxies import OnTokens, ProxyJob, on_a_worker, short_hash, training_identity
from train.baselines.cost import SearchCost, flops, matmul_parameters
from train.baselines.laws.additive import fit_additive
from train.baselines.laws.best_mixture import best_mixture
from train.baselines.olmix import olmix_weights
from train.baselines.reweighting_rules import search_doge, search_doremi
from train.baselines.swarm import swarm_weights
from train.checkpoints.checkpoints import CheckpointPlan
from train.mixture.count import PASSAGE_TOKENS, count_passages, counted_weights
from train.mixture.named_mixtures import stated_weights, swarm_centre
from train.mixture.simplex import at_least_a_thousandth
from train.search.plan import SearchPlan
from train.search.proposals import SCORES
from train.search.result import finished_mixture
from train.search.search import search
from train.trials.verdict import Trial, judge

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class FoundMixture:
    """A mixture, in the order of the catalog's sources, what it cost to find, and what a reader must know of how, if anything."""

    weights: tuple[float, ...]
    cost: SearchCost
    note: str = ""


@dataclass(frozen=True)
class ReweightingJob:
    """DoGE or DoReMi on a proxy of the search's budget.

    Attributes:
        kind: doge or doremi.
    """

    plan: SearchPlan
    kind: str

    @property
    def num_tokens(self) -> int:
        """Training tokens of its proxies."""
        return self.plan.proxy.training.num_tokens * (2 if self.kind == "doremi" else 1)

    @property
    def path(self) -> Path:
        """Where the result lies."""
        return Workdir(self.plan.catalog.root).compare.found(self.kind, self._hash)

    @property
    def _hash(self) -> str:
        plan, proxy = self.plan, self.plan.proxy
        identity = {**training_identity(proxy), "version": _FORMAT_VERSION, "kind": self.kind, "seed": proxy.training.seed}
        if self.kind == "doge":
            identity |= {"target": plan.target.weights(), "target_batch": plan.search.target_batch}
        else:
            identity |= {"reference": list(self.reference.weights)}
        return short_hash(identity)

    def finished(self) -> FoundMixture | None:
        """The result, if it is on disk."""
        if not self.path.exists():
            return None
        content = read_json(self.path)
        return FoundMixture(tuple(content["weights"].values()), SearchCost(**content["cost"]))

    def run(self, on_tokens: OnTokens) -> FoundMixture:
        """Search, in a process group of one rank."""
        proxy = on_a_worker(self.plan.proxy.on_one_rank())
        folder = Workdir(proxy.catalog.root).compare.checkpoints_of(self.kind, self._hash)
        kept = CheckpointPlan(folder, {"found": self._hash}, self.plan.search.checkpoint_interval)
        if self.kind == "doge":
            weights_K, cost = search_doge(proxy, self.plan.target, self.plan.search, on_tokens=on_tokens, kept=kept)
        else:
            job = self.reference
            trained = job.run(on_tokens)
            reference = proxy.build_engine(seed=0, parameters=job.folder.proxy)
            weights_K, cost = search_doremi(proxy, reference=reference, on_tokens=on_tokens, kept=kept)
            reference.close()
            cost += SearchCost(trained.num_tokens, flops(matmul_parameters(proxy), trained=trained.num_tokens), trained.seconds)
        weights = dict(zip(proxy.catalog.sources, weights_K.tolist(), strict=True))
        write_json(self.path, {"weights": weights, "cost": asdict(cost)})
        kept.discard()
        return FoundMixture(tuple(weights.values()), cost)

    @property
    def reference(self) -> ProxyJob:
        """DoReMi's reference proxy, trained on the stated start: uniform, or by size as in the paper."""
        prior_K = swarm_centre(self.plan.search, self.plan.catalog)
        return proxy_job(self.plan, prior_K, names=(), half="search")


def proxy_job(plan: SearchPlan, weights_K: Float64s, *, names: Sequence[str], half: Half, seed: int | None = None) -> ProxyJob:
    """A proxy of the search's budget on a fixed mixture; its seed is the search's when not given."""
    seed = plan.proxy.training.seed if seed is None else seed
    weights, num_sequences = tuple(weights_K.tolist()), plan.search.eval_sequences
    interval = plan.search.checkpoint_interval
    return ProxyJob(plan.proxy.on_one_rank(), weights, seed, tuple(names), half, num_sequences, interval)


def centre_of(method: Method, plan: SearchPlan) -> FoundMixture:
    """What a method's swarm and candidates are drawn around: the same for all targets, or what the method `count` answers.

    The second within the bounds, for of candidates around a mixture that is outside hardly any would be within.
    """
    if method.kind != AROUND_COUNT:
        return FoundMixture(tuple(swarm_centre(plan.search, plan.catalog).tolist()), SearchCost())
    counted = stated_mixture(Method("count", "count"), plan)
    centre_K = at_least_a_thousandth(plan.constraints.project(np.array(counted.weights)))
    return FoundMixture(tuple(centre_K.tolist()), counted.cost)


def swarm_jobs(plan: SearchPlan, centre: FoundMixture, *, num_proxies: int) -> list[ProxyJob]:
    """The swarm's proxies, with the search's seed, measured on the half of each target that searches may see."""
    drawn_NK = swarm_weights(np.array(centre.weights), num_mixtures=num_proxies, seed=plan.proxy.training.seed)
    return [proxy_job(plan, weights_K, names=tuple(plan.target.weights()), half="search") for weights_K in drawn_NK]


def stated_mixture(method: Method, plan: SearchPlan) -> FoundMixture:
    """uniform, proportional, or what counts say: no proxy is trained, though counting may take seconds.

    `count` is where a search starts. `mde` counts every token as a passage of its own, as MDE (arXiv 2502.15950) mixes its models.
    """
    started = time.monotonic()
    if method.kind not in ("count", "mde"):
        return FoundMixture(tuple(stated_weights(plan.catalog, method.kind, unit=plan.search.weight_unit).tolist()), SearchCost())
    passage_tokens = 1 if method.kind == "mde" else PASSAGE_TOKENS
    count = count_passages(plan.proxy, plan.target.weights(), passage_tokens=passage_tokens)
    weights_K = counted_weights(count, constraints=plan.constraints)
    return FoundMixture(tuple(weights_K.tolist()), SearchCost(seconds=time.monotonic() - started))


def fit_swarm(method: Method, plan: SearchPlan, centre: FoundMixture, swarm: Sequence[ProxyJob]) -> FoundMixture:
    """The mixture of RegMix, Olmix or the additive law from the finished runs of a swarm around a centre."""
    results, importance = [job.result() for job in swarm], plan.target.weights()
    losses_GN = np.array([[result.losses[name] for result in results] for name in importance])
    started = time.monotonic()
    prior_K, weights_NK = np.array(centre.weights), np.array([job.weights for job in swarm])
    weights_K, note = _fit(method, plan, weights_NK, losses_GN, np.array(list(importance.values())), prior_K=prior_K)
    seconds = time.monotonic() - started
    trained = sum(result.num_tokens for result in results)
    measured = len(swarm) * len(importance) * plan.search.eval_sequences * plan.proxy.training.sequence_length
    num_flops = flops(matmul_parameters(plan.proxy), trained=trained, forward_only=measured)
    cost = SearchCost(trained, num_flops, sum(result.seconds for result in results) + seconds)
    return FoundMixture(tuple(weights_K.tolist()), centre.cost + cost, f"{method.name}: {note}" if note else "")


def _fit(
    method: Method, plan: SearchPlan, weights_NK: Float64s, losses_GN: Float64s, importance_G: Float64s, *, prior_K: Float64s
) -> tuple[Float64s, str]:
    seed = plan.proxy.training.seed
    if method.kind in ("regmix", AROUND_COUNT):
        from train.baselines.regmix import regmix_weights  # lightgbm takes a second to import

        return regmix_weights(
            weights_NK, losses_GN, importance_G=importance_G, prior_K=prior_K, constraints=plan.constraints, seed=seed
        )
    if method.kind == "olmix":
        weights_K = olmix_weights(
            weights_NK, losses_GN, importance_G=importance_G, prior_K=prior_K, constraints=plan.constraints, seed=seed
        )
        return weights_K, ""
    laws = [fit_additive(weights_NK, losses_N) for losses_N in losses_GN]
    return best_mixture(laws, importance_G=importance_G, centre_K=prior_K, constraints=plan.constraints), ""


def search_mixture(plan: SearchPlan, *, quiet: bool) -> Mixture:
    """What the recipe's own search finds: the workdir's if it is finished and of this recipe, else one in a folder of the comparison."""
    try:
        mixture = finished_mixture(plan, replace=False)
    except FastmixError:  # another recipe's, an earlier version's or a damaged one: it is not for a comparison to refuse
        mixture = None
    if mixture is None:
        folder = Workdir(plan.catalog.root).compare.search(plan.recipe_hash[:20])
        mixture = search(plan.in_folder(folder), quiet=quiet).mixture
    return mixture


def check_paper(plan: SearchPlan) -> None:
    """Refuse a budget that ends before the published rule moves its mixture.

    Raises:
        RecipeError: says how much would not.
    """
    training, interval = plan.proxy.training, plan.as_published().search.update_interval
    if training.num_steps < interval:
        needed = interval * training.tokens_per_step
        raise RecipeError(
            "training.token_budget",
            f"paper moves its mixture every {interval} steps, and the budget is {training.num_steps}",
            f"raise it to {needed} ({format_count(needed)}), or leave paper out",
        )


def found_by_search(mixture: Mixture, plan: SearchPlan) -> FoundMixture:
    """The answer of a search.

    Tokens pass forward and backward; a scored batch at each update takes one more matrix product per layer, as a forward pass does.
    """
    run = mixture.search
    scored = run.num_updates * plan.proxy.training.tokens_per_step
    num_flops = flops(matmul_parameters(plan.proxy), trained=run.num_tokens, forward_only=scored)
    weights_K = mixture.weights_K(plan.catalog.sources)
    return FoundMixture(tuple(weights_K.tolist()), SearchCost(run.num_tokens, num_flops, run.seconds))


def found_by_trials(mixture: Mixture, plan: SearchPlan) -> FoundMixture:
    """What the trials of a search say without the mixture of its scores, at the cost of these trials; its start where it had none."""
    record = mixture.trials
    if record is None:
        return FoundMixture(tuple(mixture.start.weights[name] for name in plan.catalog.sources), SearchCost())
    training, names = plan.proxy.training, [name for name in record.mixtures if name != SCORES]
    trials = [
        Trial(name, int(number), record.tokens[number] // training.tokens_per_step, loss)
        for name in names
        for number, loss in record.losses[name].items()
    ]
    verdict = judge(trials, names=names, horizon_steps=training.num_steps)
    answer = record.mixtures[verdict.winner]
    tokens = sum(trial.num_steps for trial in trials) * training.tokens_per_step
    share = tokens / max(1, mixture.search.num_tokens)
    cost = SearchCost(tokens, flops(matmul_parameters(plan.proxy), trained=tokens), share * mixture.search.seconds)
    return FoundMixture(tuple(answer[source] for source in plan.catalog.sources), cost)
