"""The public tables of RegMix and Olmix, and what was published of them; for `scripts/bench/mixture_tables.py` and its test.

Under the folder are `regmix/{train,test}_mixture_1m.csv`, `test_mixture_1B.csv` with `{train,test}_pile_loss_{1m,60m,1B}.csv`, from
sail-sg/regmix, and `olmix/dclm_{ratios,metrics}.csv`, from allenai/olmix.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmix_data.arrays import Float64s
from pipelines.fit.swarm_table import read_table
from train.baselines.laws.fits import fit_named, rank_correlation

# Spearman's rank correlation of LightGBM's prediction with the loss of 256 held-out runs, of 512 (RegMix's notebook).
PUBLISHED_RANK_CORRELATIONS = {
    "arxiv": 0.9960,
    "freelaw": 0.9971,
    "github": 0.9977,
    "wikipedia_en": 0.9945,
    "gutenberg_pg_19": 0.9918,
    "dm_mathematics": 0.9720,
    "ubuntu_irc": 0.9687,
    "pile_cc": 0.9892,
    "hackernews": 0.9851,
    "uspto_backgrounds": 0.9912,
}
PUBLISHED_CARRIED_OVER = {"60m": 0.9857, "1B": 0.9615}  # Pile-CC's fit beside larger models
PUBLISHED_ERRORS_AT_1B = {"additive": 0.022, "log-linear": 0.070}  # mean relative errors (arXiv 2606.08167)
_FITTED_PART = 0.7


class LossTable(NamedTuple):
    """Runs: mixtures as they are written, to three decimals, shape (N, K); losses by name of the target, shape (N,)."""

    weights_NK: Float64s
    losses: dict[str, Float64s]

    @property
    def shares_NK(self) -> Float64s:
        """The mixtures, normalised, shape (N, K)."""
        shares_NK: Float64s = self.weights_NK / self.weights_NK.sum(axis=1, keepdims=True)
        return shares_NK

    @property
    def losses_GN(self) -> Float64s:
        """All losses, shape (G, N)."""
        return np.array(list(self.losses.values()))


def regmix_table(tables: Path, split: str, *, model: str = "1m") -> LossTable:
    """RegMix's runs of a split, train or test, with the losses of a model: 1m, 60m or 1B."""
    # The 60 M runs are of the mixtures of the 1 M ones.
    mixtures = read_table(tables / "regmix" / f"{split}_mixture_{'1B' if model == '1B' else '1m'}.csv")
    losses = read_table(tables / "regmix" / f"{split}_pile_loss_{model}.csv")
    names = [name.removeprefix("metric/the_pile_").removesuffix("_val_loss") for name in losses.values]
    return LossTable(mixtures.numbers(), dict(zip(names, losses.numbers().T, strict=True)))


def olmix_table(tables: Path) -> LossTable:
    """Olmix's 127 runs on the topics of DCLM with bits per byte of many tasks."""
    ratios, metrics = (read_table(tables / "olmix" / f"dclm_{kind}.csv") for kind in ("ratios", "metrics"))
    return LossTable(ratios.numbers(), dict(zip(metrics.values, metrics.numbers().T, strict=True)))


def published_rank_correlation(train: LossTable, judged: LossTable, target: str, *, stop_early: bool = True) -> float:
    """RegMix's own figure: trees of its notebook, fitted on the train runs, which rank other runs.

    Args:
        stop_early: by the runs that are ranked. Those of a larger model have other losses and cannot serve.
    """
    from train.baselines.regmix import fit_trees_as_published  # lightgbm takes a second to import

    stop_by = (judged.weights_NK, judged.losses[target]) if stop_early else None
    trees = fit_trees_as_published(train.weights_NK, train.losses[target], stop_by=stop_by)
    return rank_correlation(trees.predict(judged.weights_NK), judged.losses[target])


def relative_errors(table: LossTable, law: str, *, num_splits: int) -> Float64s:
    """Mean relative error over all targets of a law fitted on 70% of the runs, on the rest; of each of several random splits."""
    errors, num_fitted = np.empty((num_splits, len(table.losses))), round(_FITTED_PART * len(table.weights_NK))
    for split in range(num_splits):
        order_N = np.random.default_rng(split).permutation(len(table.weights_NK))
        fitted, held_out = order_N[:num_fitted], order_N[num_fitted:]
        for number, losses_N in enumerate(table.losses.values()):
            predicted_N = fit_named(law)(table.shares_NK[fitted], losses_N[fitted]).predict(table.shares_NK[held_out])
            errors[split, number] = np.abs(predicted_N / losses_N[held_out] - 1).mean()
    mean: Float64s = errors.mean(axis=1)
    return mean
