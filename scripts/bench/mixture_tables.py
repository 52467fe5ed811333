"""The fits on tables of mixtures and losses that others made: RegMix's Pile runs and Olmix's DCLM runs.

    python scripts/bench/mixture_tables.py --tables DIR [--parts published ranking 1b olmix pull] [--subsets 10]

Needs nothing but the tables (see pipelines/fit/public_tables.py), which FASTMIX_TABLES names if --tables does not. Markdown, for
docs/tables.md. Intervals are 90% over random subsets of the runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmix_data.recipe.constraints import ConstraintsSection
from pipelines.fit.public_tables import (
    PUBLISHED_CARRIED_OVER,
    PUBLISHED_ERRORS_AT_1B,
    PUBLISHED_RANK_CORRELATIONS,
    LossTable,
    olmix_table,
    published_rank_correlation,
    regmix_table,
    relative_errors,
)
from pipelines.report.method_figures import mean_interval
from train.baselines.laws.additive import fit_additive
from train.baselines.laws.best_mixture import best_mixture
from train.baselines.laws.fits import cross_validated, figures_of, fit_named, rank_correlation
from train.mixture.constraints import stated_constraints

FITS = ("additive", "trees", "log-linear", "ridge", "nearest")
SIZES = (16, 32, 64, 128, 512)
OLMIX_SIZES = (16, 32, 64, 96)
SPLITS_AT_1B = 20
PULLS = (1e-6, 0.03, 0.1, 0.3, 1.0, 3.0)
# Of the targets in turn, for a cheaper table.
PULL_TARGETS = ("arxiv", "dm_mathematics", "stackexchange", "pile_cc", "mean")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def cell(values: Sequence[float], *, digits: int = 3) -> str:
    """Mean of the subsets and half its 90% interval; of one subset the figure alone."""
    interval = mean_interval(list(values)) if len(values) > 1 else None
    half = f" ± {(interval[1] - interval[0]) / 2:.{digits}f}" if interval is not None else ""
    return f"{np.mean(values):.{digits}f}{half}"


def published(tables: Path) -> str:
    """RegMix's rank correlations beside the published ones."""
    train, test = regmix_table(tables, "train"), regmix_table(tables, "test")
    rows = [["target", "published", "here"]]
    for target in train.losses:
        known = PUBLISHED_RANK_CORRELATIONS.get(target)
        found = published_rank_correlation(train, test, target)
        rows.append([target, f"{100 * known:.2f}" if known else "", f"{100 * found:.2f}"])
    for model, known in PUBLISHED_CARRIED_OVER.items():
        found = published_rank_correlation(train, regmix_table(tables, "test", model=model), "pile_cc", stop_early=False)
        rows.append([f"pile_cc, ranked at {model}", f"{100 * known:.2f}", f"{100 * found:.2f}"])
    return markdown(rows)


def with_mean(table: LossTable) -> LossTable:
    return LossTable(table.weights_NK, {"mean": table.losses_GN.mean(axis=0)})


class Scores(NamedTuple):
    """Rank correlation on the judged runs and regret of the one ranked first: means over targets, and of the mean of all targets."""

    correlation: float
    regret: float
    correlation_of_mean: float
    regret_of_mean: float


def scores(fit: str, train: LossTable, judged: LossTable, subset: np.ndarray) -> Scores:
    """What a fit to some of the runs is worth; the mean of all targets is predicted by the mean of their predictions."""
    fitted_NK = train.shares_NK[subset]
    predicted_GN = np.array(
        [fit_named(fit)(fitted_NK, losses_N[subset]).predict(judged.shares_NK) for losses_N in train.losses_GN]
    )
    each = [judged_by(predicted_N, losses_N) for predicted_N, losses_N in zip(predicted_GN, judged.losses_GN, strict=True)]
    return Scores(*np.mean(each, axis=0), *judged_by(predicted_GN.mean(axis=0), judged.losses_GN.mean(axis=0)))


def judged_by(predicted_N: np.ndarray, measured_N: np.ndarray) -> tuple[float, float]:
    """Rank correlation and regret."""
    return rank_correlation(predicted_N, measured_N), float(measured_N[predicted_N.argmin()] - measured_N.min())


def scores_by_size(
    draw: Callable[[int, int], tuple[np.ndarray, LossTable]], train: LossTable, *, sizes: Sequence[int], num_subsets: int
) -> dict[str, list[list[Scores]]]:
    """For each fit and size of swarm, the scores of several subsets; of the whole table there is one."""
    found: dict[str, list[list[Scores]]] = {fit: [] for fit in FITS}
    for size in sizes:
        draws = [draw(size, number) for number in range(num_subsets if size < len(train.weights_NK) else 1)]
        for fit in FITS:
            found[fit].append([scores(fit, train, judged, subset) for subset, judged in draws])
    return found


def ranking_table(found: dict[str, list[list[Scores]]], *, sizes: Sequence[int], figures: dict[str, str]) -> str:
    """Markdown: a row for each figure and fit, a column for each size of swarm."""
    rows = [["figure", "fit", *(f"N = {size}" for size in sizes)]]
    for name, title in figures.items():
        rows += [
            [title, fit, *(cell([getattr(each, name) for each in column]) for column in columns)]
            for fit, columns in found.items()
        ]
    return markdown(rows)


def ranking(tables: Path, num_subsets: int) -> str:
    """Every fit on RegMix's 1 M runs: for single Pile sources, then for the mean of them all."""
    train, test = regmix_table(tables, "train"), regmix_table(tables, "test")

    def draw(size: int, number: int) -> tuple[np.ndarray, LossTable]:
        return np.random.default_rng(number).permutation(len(train.weights_NK))[:size], test

    found = scores_by_size(draw, train, sizes=SIZES, num_subsets=num_subsets)
    single = ranking_table(found, sizes=SIZES, figures={"correlation": "rank correlation", "regret": "regret"})
    mean = ranking_table(found, sizes=SIZES, figures={"correlation_of_mean": "rank correlation", "regret_of_mean": "regret"})
    return f"Mean over the 13 losses, each a target:\n\n{single}\n\nThe mean of the 13 losses as the target:\n\n{mean}"


def at_1b(tables: Path) -> str:
    """Relative errors of laws on RegMix's 1 B runs beside the published ones."""
    table = regmix_table(tables, "test", model="1B")
    rows = [["fit", "published", "here"]]
    for fit in FITS:
        errors = 100 * relative_errors(table, fit, num_splits=SPLITS_AT_1B)
        known = PUBLISHED_ERRORS_AT_1B.get(fit)
        rows.append([fit, f"{100 * known:.1f}%" if known else "", f"{cell(errors.tolist(), digits=2)}%"])
    return markdown(rows)


def olmix(tables: Path, num_subsets: int) -> str:
    """Every fit on Olmix's runs: the mean of all tasks as one target, judged on 31 runs that no subset has."""
    table = with_mean(olmix_table(tables))

    def draw(size: int, number: int) -> tuple[np.ndarray, LossTable]:
        order = np.random.default_rng(number).permutation(len(table.weights_NK))
        rest = order[max(OLMIX_SIZES) :]
        return order[:size], LossTable(table.weights_NK[rest], {"mean": table.losses["mean"][rest]})

    found = scores_by_size(draw, table, sizes=OLMIX_SIZES, num_subsets=2 * num_subsets)
    return ranking_table(found, sizes=OLMIX_SIZES, figures={"correlation": "rank correlation", "regret": "regret"})


def pull(tables: Path, num_subsets: int) -> str:
    """What the pull to the swarm's mean costs or saves: the additive law's mixture, judged by two fits to all 768 runs of 1 M models."""
    train, test = regmix_table(tables, "train"), regmix_table(tables, "test")
    shares_NK = np.concatenate([train.shares_NK, test.shares_NK])
    losses = {name: np.concatenate([train.losses[name], test.losses[name]]) for name in train.losses}
    losses["mean"] = np.mean(list(losses.values()), axis=0)
    free = stated_constraints(ConstraintsSection(), sources=[str(k) for k in range(shares_NK.shape[1])])
    rows = [["N", "judged by", *(f"{strength:g}" for strength in PULLS)]]
    for size in (16, 32, 128):
        found: dict[str, list[list[float]]] = {"additive": [], "trees": []}
        for target in PULL_TARGETS:
            judges = {name: fit_named(name)(shares_NK, losses[target]) for name in found}
            for number in range(num_subsets):
                subset = np.random.default_rng(number).permutation(len(train.weights_NK))[:size]
                fitted_NK, fitted_N = shares_NK[subset], losses[target][subset]
                error = figures_of(cross_validated(fit_additive, fitted_NK, fitted_N), fitted_N).error
                law, centre_K = fit_additive(fitted_NK, fitted_N), np.maximum(fitted_NK.mean(axis=0), 1e-12)
                centre_K /= centre_K.sum()
                bests = [
                    best_mixture(
                        [law], importance_G=np.ones(1), centre_K=centre_K, constraints=free, kl_strength=strength * error
                    )
                    for strength in PULLS
                ]
                for name, judge in judges.items():
                    found[name].append((judge.predict(np.array(bests)) - losses[target].min()).tolist())
        rows += [[str(size), name, *(f"{value:+.3f}" for value in np.mean(each, axis=0))] for name, each in found.items()]
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=os.environ.get("FASTMIX_TABLES"))
    parser.add_argument("--subsets", type=int, default=10)
    parts = {
        "published": lambda: published(options.tables),
        "ranking": lambda: ranking(options.tables, options.subsets),
        "1b": lambda: at_1b(options.tables),
        "olmix": lambda: olmix(options.tables, options.subsets),
        "pull": lambda: pull(options.tables, options.subsets),
    }
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    options = parser.parse_args()
    if options.tables is None:
        parser.error("name the folder of the tables with --tables or FASTMIX_TABLES")
    options.tables = Path(options.tables)
    for part in options.parts:
        print(f"\n## {part}\n\n{parts[part]()}", flush=True)


if __name__ == "__main__":
    main()
