"""Several searches that differ in their seed only: the first may lie there already, and what they come to together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
from scipy.special import stdtrit

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import atomic_file
from fastmix_data.errors import MismatchError
from fastmix_data.results.mixture import (
    Certainty,
    Intervals,
    Limit,
    Mixture,
    SearchRecord,
    StartRecord,
    TargetRecord,
    TrialsRecord,
    load_mixture,
    save_mixture,
)
from train.checkpoints.checkpoint_folder import check_checkpoints
from train.search.certainty import groups_of_pairs
from train.search.other_documents import combined
from train.search.plan import SearchPlan
from train.search.result import by_source, finished_mixture


def adopt_single_search(plan: SearchPlan, *, replace: bool) -> None:
    """Make the search that lies in the search's folder itself, finished or stopped, the first of several; of another recipe, replace it.

    A finished one is copied, so that the folder is never without a mixture; it is overwritten by the mean in the end.

    Raises:
        MismatchError: a search of another recipe or other data lies here, and `replace` is not given.
    """
    first, folder = plan.of_seeds(1)[0], plan.folder
    single = finished_mixture(plan, replace=replace)
    is_done = finished_mixture(first, replace=replace) is not None
    first.folder.root.mkdir(parents=True, exist_ok=True)
    # Each says which search it is of, and is made anew if not of this one.
    for path, target in ((folder.reference, first.folder.reference), (folder.trials, first.folder.trials)):
        if path.exists() and not target.exists():
            shutil.copy2(path, target)
    for path, target in ((folder.metrics, first.folder.metrics), (folder.tensorboard, first.folder.tensorboard)):
        if path.exists() and not target.exists():
            path.rename(target)
    if single is None:
        folder.mixture.unlink(missing_ok=True)
    elif not single.certainty.seed_weights and not is_done:
        for path, target in ((folder.recipe, first.folder.recipe), (folder.trajectory, first.folder.trajectory)):
            if path.exists():
                shutil.copy2(path, target)
        save_mixture(first.folder.mixture, single)
        is_done = True
    _adopt_checkpoints(plan, replace=replace, to=None if is_done else first)


def _adopt_checkpoints(plan: SearchPlan, *, replace: bool, to: SearchPlan | None) -> None:
    checkpoints = plan.folder.checkpoints
    if not checkpoints.exists():
        return
    try:
        check_checkpoints(checkpoints, identity=plan.identity)
    except MismatchError:
        if not replace:
            raise
        to = None
    if to is None or to.folder.checkpoints.exists():
        shutil.rmtree(checkpoints)
        return
    checkpoints.rename(to.folder.checkpoints)


def write_mean(plan: SearchPlan, plans: Sequence[SearchPlan]) -> None:
    """Write the mean of finished searches as the search's own mixture; the trajectory beside it is the first one's."""
    mixtures = [load_mixture(one.folder.mixture) for one in plans]
    mean = mean_of_searches(mixtures, limit_tolerance=plan.target.limit_tolerance)
    mean_K = plan.constraints.project(mean.weights_K(plan.catalog.sources))  # feasible but for rounding: the set is convex
    weights = dict(zip(plan.catalog.sources, mean_K.tolist(), strict=True))
    mean = mean.model_copy(
        update={"weights": weights, "binding": plan.constraints.binding(mean_K), "shares": plan.catalog.counted(mean_K)}
    )
    with atomic_file(plan.folder.trajectory) as file:
        file.write(plans[0].folder.trajectory.read_bytes())
    save_mixture(plan.folder.mixture, mean)


def mean_of_searches(mixtures: Sequence[Mixture], *, limit_tolerance: float = 0.0) -> Mixture:
    """What N searches come to, N >= 2: mean weights, sums of their costs, and how far they disagree.

    - `seed_interval`: mean +- t s sqrt(1 + 1/N), s being the standard deviation over seeds and t the 95% quantile of Student's t with
      N - 1 degrees of freedom: 90% of the answers of one more search lie in it. It is wide for N = 2, where little is known of s. All
      searches go by the same documents of the target; what others would change (`document_interval`) is added.
    - `interval`: means of the lower and of the upper ends, the noise that one trajectory knows of.
    - `signal_to_noise`: sum over seeds / sqrt(N), as searches are independent (Stouffer).
    - start: the mean of their weights. Trials: those of all seeds, with the means of what each says of the mixtures that all of them tried.
    - `interchangeable`: pairs that more than half of the searches could not tell apart.
    - target: mean losses; `limits` of mean losses against mean references; `worst` is the largest regret of any search.
    """
    names = list(mixtures[0].weights)
    weights_NK = np.array([mixture.weights_K(names) for mixture in mixtures])
    mean_K = weights_NK.mean(axis=0)
    return mixtures[0].model_copy(
        update={
            "weights": dict(zip(names, mean_K.tolist(), strict=True)),
            "certainty": _certainty(mixtures, names, weights_NK),
            "start": StartRecord(weights=_mean_by_name([mixture.start.weights for mixture in mixtures])),
            "trials": _trials({str(one.search.seed): one.trials for one in mixtures if one.trials is not None}),
            "search": _search(mixtures),
            "target": _target([mixture.target for mixture in mixtures], tolerance=limit_tolerance),
        }
    )


def _certainty(mixtures: Sequence[Mixture], names: Sequence[str], weights_NK: Float64s) -> Certainty:
    number, mean_K, each = len(mixtures), weights_NK.mean(axis=0), [mixture.certainty for mixture in mixtures]
    half_K = float(stdtrit(number - 1, 0.95)) * weights_NK.std(axis=0, ddof=1) * sqrt(1 + 1 / number)
    low_K, high_K = np.clip(mean_K - half_K, 0, 1), np.clip(mean_K + half_K, 0, 1)
    interval, other_documents = (
        _mean_intervals([getattr(one, kind) for one in each]) for kind in ("interval", "document_interval")
    )
    ends = (low_K, high_K)
    if other_documents:  # all seeds went by the same documents, so that of these their spread says nothing
        low_high_2K = np.array([other_documents[name] for name in names]).T
        ends = combined(mean_K, ends, (low_high_2K[0], low_high_2K[1]))
    signal_NK = np.array([[one.signal_to_noise.get(name, 0.0) for name in names] for one in each])
    return Certainty(
        interval=interval,
        document_interval=other_documents,
        num_documents=each[0].num_documents,
        signal_to_noise=dict(zip(names, (signal_NK.sum(axis=0) / sqrt(number)).tolist(), strict=True)),
        interchangeable=_common_groups(each, names, mean_K),
        seed_interval=by_source(names, ends),
        seed_weights={str(mixture.search.seed): mixture.weights for mixture in mixtures},
    )


def _trials(of_seeds: Mapping[str, TrialsRecord]) -> TrialsRecord | None:
    if not of_seeds:
        return None
    each = list(of_seeds.values())
    names = [name for name in each[0].mixtures if all(name in one.mixtures for one in each)]
    likely = {name: float(np.mean([one.probability[name] for one in each])) for name in names}
    wins = [one.winner for one in each]
    winner = max(names, key=lambda name: (wins.count(name), likely[name]))
    return TrialsRecord(
        mixtures={name: _mean_by_name([one.mixtures[name] for one in each]) for name in names},
        losses={
            name: {f"{seed}:{number}": loss for seed, one in of_seeds.items() for number, loss in one.losses[name].items()}
            for name in names
        },
        tokens={f"{seed}:{number}": tokens for seed, one in of_seeds.items() for number, tokens in one.tokens.items()},
        probability=likely,
        winner=winner,
        ahead={name: _ahead(each, winner, name) for name in names if name != winner},
        noise=float(np.sqrt(np.mean([one.noise**2 for one in each]))),
        exponent=float(np.mean([one.exponent for one in each])),
        horizon_tokens=each[0].horizon_tokens,
    )


def _ahead(each: Sequence[TrialsRecord], winner: str, name: str) -> tuple[float, float, float]:
    """Mean of what each search says, and an interval as much narrower as there are more of them: their trials are independent."""
    means, halves = [], []
    for one in each:
        (first, first_low, first_high), (second, second_low, second_high) = (
            one.ahead.get(which, (0.0, 0.0, 0.0)) for which in (name, winner)
        )
        means.append(first - second)
        # The two ends are of differences to the same winner, so the wider of them is of this one too.
        halves.append(max(first_high - first_low, second_high - second_low) / 2)
    mean, half = float(np.mean(means)), float(np.sqrt(np.sum(np.square(halves)))) / len(each)
    return mean, mean - half, mean + half


def _search(mixtures: Sequence[Mixture]) -> SearchRecord:
    searches = [mixture.search for mixture in mixtures]
    return searches[0].model_copy(
        update={
            "stopped": _why_they_ended(searches),
            "seconds": round(sum(one.seconds for one in searches), 3),
            **{name: sum(getattr(one, name) for one in searches) for name in ("num_tokens", "num_steps", "num_updates")},
        }
    )


def _target(targets: Sequence[TargetRecord], *, tolerance: float) -> TargetRecord:
    worst = [target.worst for target in targets if target.worst is not None]
    return TargetRecord(
        loss=_mean_by_name([target.loss for target in targets]),
        losses={name: _mean_by_name([target.losses[name] for target in targets]) for name in targets[0].losses},
        weights=_mean_by_name([target.weights for target in targets]),
        limits={name: _mean_limit([target.limits[name] for target in targets], tolerance) for name in targets[0].limits},
        worst=max(worst, key=lambda target: target.regret, default=None),
    )


def _mean_intervals(each: Sequence[Intervals]) -> Intervals:
    """Means of the lower and of the upper ends, of the names that the first one has."""
    means = {name: np.mean([one[name] for one in each], axis=0).tolist() for name in each[0]}
    return {name: (low, high) for name, (low, high) in means.items()}


def _mean_by_name(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([record[name] for record in records])) for name in records[0]}


def _mean_limit(limits: Sequence[Limit], tolerance: float) -> Limit:
    loss = float(np.mean([limit.loss for limit in limits]))
    reference = float(np.mean([limit.reference for limit in limits]))
    return Limit(reference=reference, loss=loss, kept=loss <= reference + tolerance)


def _common_groups(certainties: Sequence[Certainty], names: Sequence[str], weights_K: Float64s) -> list[list[str]]:
    index, votes_KK = {name: k for k, name in enumerate(names)}, np.zeros((len(names), len(names)))
    for certainty in certainties:
        for group in certainty.interchangeable:
            members = [index[name] for name in group]
            votes_KK[np.ix_(members, members)] += 1
    np.fill_diagonal(votes_KK, 0)
    return [[names[k] for k in group] for group in groups_of_pairs(votes_KK > len(certainties) / 2, weights_K)]


def _why_they_ended(searches: Sequence[SearchRecord]) -> str:
    reasons = {search.stopped for search in searches}
    if len(reasons) == 1:
        return f"each of {len(searches)} searches {reasons.pop()}"
    return "; ".join(f"seed {search.seed} {search.stopped}" for search in searches)
