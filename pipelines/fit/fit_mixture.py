"""From a swarm to a mixture: the law that predicts held-out runs best, and the mixture that is best by it, within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import hash_of, sha256_of_file
from fastmix_data.errors import MismatchError
from fastmix_data.messages import joined
from fastmix_data.results.mixture import FitRecord, LawFigures, Mixture, load_mixture, save_mixture
from pipelines.fit.swarm_table import Swarm
from train.baselines.laws.best_mixture import best_mixture
from train.baselines.laws.fits import cross_validated, figures_of, fit_named
from train.baselines.laws.law import Law, SmoothLaw
from train.mixture.constraints import MixtureConstraints

LAWS = ("additive", "log-linear", "ridge", "trees")  # simpler ones first: of equal ones the first is taken
_LEVEL = 3.0  # where the smallest loss is put, in standard deviations: the log-linear law has a floor above 0
_TOLD_APART = 1.645 * 2**0.5  # 90% of differences of two predictions with independent errors are smaller
_PULL = 0.1  # errors of the law that a nat of divergence from the centre has to gain
_SEED, _SMALLEST_CENTRE = 0, 1e-12


@dataclass(frozen=True)
class FitResult:
    """What a call of `fit` came to; `did_work` is False if it was there already."""

    mixture: Mixture
    did_work: bool
    notes: tuple[str, ...]
    message: str


@dataclass(frozen=True, eq=False)
class _Losses:
    """Metrics as losses that laws can be fitted to: lower is better, and each has the deviation 1 and the minimum 3.

    Attributes:
        scaled_GN: shape (G, N).
        sign: -1 where higher is better.
        scale_G, least_G: to go back, shape (G,).
    """

    scaled_GN: Float64s
    sign: float
    scale_G: Float64s
    least_G: Float64s

    @classmethod
    def of(cls, measured_GN: Float64s, *, higher_is_better: bool) -> _Losses:
        sign = -1.0 if higher_is_better else 1.0
        losses_GN = sign * measured_GN
        scale_G, least_G = losses_GN.std(axis=1), losses_GN.min(axis=1)
        return cls((losses_GN - least_G[:, None]) / scale_G[:, None] + _LEVEL, sign, scale_G, least_G)

    def mean_metric(self, scaled_GN: Float64s) -> Float64s:
        """The mean of the targets as they were measured, shape (N,)."""
        losses_GN = self.scale_G[:, None] * (scaled_GN - _LEVEL) + self.least_G[:, None]
        metric_N: Float64s = self.sign * losses_GN.mean(axis=0)
        return metric_N


def fit(
    swarm: Swarm,
    *,
    targets: Sequence[str],
    constraints: MixtureConstraints,
    higher_is_better: bool,
    tables: Sequence[Path],
    output: Path,
    replace: bool = False,
) -> FitResult:
    """Write the mixture that is best by the law that fits the swarm best, or find it written already.

    Args:
        tables: the files that the swarm was read from, for the record of what the mixture was made from.
        output: file of the mixture.
        replace: overwrite one that was made from other tables, targets or bounds.

    Raises:
        MismatchError: there is such a file, and it is not to be replaced.
    """
    bounds = [constraints.floor_K, constraints.ceiling_K, [[*group] for group in constraints.groups.values()]]
    hashes = [sha256_of_file(path) for path in tables]
    identity = hash_of([hashes, list(targets), higher_is_better, *bounds])
    if output.exists() and not replace:
        found = load_mixture(output)
        if found.fit is None or found.fit.made_from != identity:
            raise MismatchError(output, "is a mixture of other tables, targets or bounds", "give another --out, or --replace")
        return FitResult(found, False, (), f"{output} is complete and matches the tables; nothing to do")
    mixture, notes = _fitted(
        swarm, targets=targets, constraints=constraints, higher_is_better=higher_is_better, identity=identity
    )
    save_mixture(output, mixture)
    return FitResult(mixture, True, tuple(notes), f"wrote {output}")


def _fitted(
    swarm: Swarm, *, targets: Sequence[str], constraints: MixtureConstraints, higher_is_better: bool, identity: str
) -> tuple[Mixture, list[str]]:
    losses = _Losses.of(swarm.measured_GN, higher_is_better=higher_is_better)
    figures = {name: _worth(name, swarm.weights_NK, losses) for name in LAWS}
    name = max(figures, key=lambda name: figures[name].rank_correlation)
    error = figures[name].error
    laws = [fit_named(name)(swarm.weights_NK, scaled_N) for scaled_N in losses.scaled_GN]
    centre_K = swarm.weights_NK.mean(axis=0)
    weights_K, note = _best(name, laws, losses, swarm, constraints=constraints, error=error)
    predicted, predicted_centre = _predict(laws, losses, np.stack([weights_K, centre_K]))
    measured_N = losses.mean_metric(losses.scaled_GN)
    allowed_N = constraints.allows(swarm.weights_NK)
    # A run beyond the bounds is no answer; where all are, the best of them at least says what the bounds cost.
    among_N = np.flatnonzero(allowed_N if allowed_N.any() else ~allowed_N)
    best = int(among_N[(losses.sign * measured_N[among_N]).argmin()])
    record = FitRecord(
        law=name,
        laws=figures,
        targets=list(targets),
        higher_is_better=higher_is_better,
        num_runs=len(swarm.runs),
        noise_floor=_TOLD_APART * error,
        predicted=float(predicted),
        predicted_centre=float(predicted_centre),
        best_run=swarm.runs[best],
        best_measured=float(measured_N[best]),
        made_from=identity,
    )
    mixture = Mixture(
        weights=dict(zip(swarm.sources, weights_K.tolist(), strict=True)),
        method=f"{name} fit",
        binding=constraints.binding(weights_K),
        fit=record,
    )
    return mixture, [*([note] if note else []), *_warnings(swarm, record)]


def _worth(name: str, weights_NK: Float64s, losses: _Losses) -> LawFigures:
    predicted_GN = np.array([cross_validated(fit_named(name), weights_NK, scaled_N) for scaled_N in losses.scaled_GN])
    found = figures_of(losses.mean_metric(predicted_GN), losses.mean_metric(losses.scaled_GN))
    return LawFigures(rank_correlation=found.rank_correlation, error=found.error)


def _best(
    name: str, laws: Sequence[Law], losses: _Losses, swarm: Swarm, *, constraints: MixtureConstraints, error: float
) -> tuple[Float64s, str]:
    """The mixture that is best by the laws, near the mean of the swarm's, shape (K,), and a note on how it was found.

    The mean stands for the prior that the swarm was drawn around. A nat of divergence from it has to gain a tenth of the law's error: the
    less certain the law, the nearer the answer, whatever the unit of the metric.
    """
    centre_K = np.maximum(swarm.weights_NK.mean(axis=0), _SMALLEST_CENTRE)
    centre_K /= centre_K.sum()
    importance_G = losses.scale_G / len(laws)
    if name == "trees":
        from train.baselines.regmix import best_candidates

        return best_candidates(laws, importance_G=importance_G, prior_K=centre_K, constraints=constraints, seed=_SEED)
    smooth = cast(list[SmoothLaw], list(laws))
    strength = max(_PULL * error, 1e-6 * importance_G.sum())  # a law without any error still has one answer
    weights_K = best_mixture(smooth, importance_G=importance_G, centre_K=centre_K, constraints=constraints, kl_strength=strength)
    return weights_K, ""


def _predict(laws: Sequence[Law], losses: _Losses, weights_NK: Float64s) -> Float64s:
    return losses.mean_metric(np.array([law.predict(weights_NK) for law in laws]))


def _warnings(swarm: Swarm, record: FitRecord) -> list[str]:
    """What a reader must know before believing the fit."""
    found = []
    if swarm.num_rounded:
        found.append(f"{swarm.num_rounded} of {len(swarm.runs)} rows did not sum to 1 exactly and were normalised")
    untried = [name for name, most in zip(swarm.sources, swarm.weights_NK.max(axis=0).tolist(), strict=True) if most == 0]
    if untried:
        found.append(f"warning: no run has any of {joined(untried)}: nothing is known of what it would do")
    correlation, chance = record.laws[record.law].rank_correlation, 1.645 / (len(swarm.runs) - 1) ** 0.5
    if correlation < chance:
        found.append(
            f"warning: no law tells these runs apart: the best rank correlation is {correlation:.2f}, where chance reaches {chance:.2f}"
        )
    elif abs(record.predicted - record.predicted_centre) < record.noise_floor:
        found.append(
            f"warning: the mixture is predicted at {record.predicted:.4g} and the mean of the swarm's mixtures at "
            f"{record.predicted_centre:.4g}: less apart than the noise floor of {record.noise_floor:.2g}"
        )
    return found
