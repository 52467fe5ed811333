"""Figures that were published of tables which nobody here made come out of our fits. FASTMIX_TABLES names their folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.fit.public_tables import (
    PUBLISHED_CARRIED_OVER,
    PUBLISHED_ERRORS_AT_1B,
    PUBLISHED_RANK_CORRELATIONS,
    olmix_table,
    published_rank_correlation,
    regmix_table,
    relative_errors,
)
from train.baselines.laws.fits import fit_named, rank_correlation

pytestmark = pytest.mark.skipif("FASTMIX_TABLES" not in os.environ, reason="needs FASTMIX_TABLES")
TABLES = Path(os.environ.get("FASTMIX_TABLES", ""))


def test_regmix_s_rank_correlations_come_out_as_published() -> None:
    train, test = regmix_table(TABLES, "train"), regmix_table(TABLES, "test")
    found = {target: published_rank_correlation(train, test, target) for target in PUBLISHED_RANK_CORRELATIONS}
    assert found == pytest.approx(PUBLISHED_RANK_CORRELATIONS, abs=2e-3)


@pytest.mark.parametrize("model", PUBLISHED_CARRIED_OVER)
def test_trees_of_small_models_rank_the_runs_of_larger_ones(model: str) -> None:
    train, larger = regmix_table(TABLES, "train"), regmix_table(TABLES, "test", model=model)
    found = published_rank_correlation(train, larger, "pile_cc", stop_early=False)
    assert found == pytest.approx(PUBLISHED_CARRIED_OVER[model], abs=5e-3)


def test_laws_at_1b_are_no_worse_than_published() -> None:
    table = regmix_table(TABLES, "test", model="1B")
    errors = {law: relative_errors(table, law, num_splits=1).mean() for law in PUBLISHED_ERRORS_AT_1B}
    assert 0.01 < errors["additive"] < PUBLISHED_ERRORS_AT_1B["additive"]
    assert errors["additive"] < errors["log-linear"] < PUBLISHED_ERRORS_AT_1B["log-linear"]


def test_of_32_runs_the_additive_law_ranks_best_and_no_law_explodes() -> None:
    train, test = regmix_table(TABLES, "train"), regmix_table(TABLES, "test")
    for target in ("arxiv", "pile_cc"):
        few_NK, few_N = train.shares_NK[:32], train.losses[target][:32]
        predicted = {law: fit_named(law)(few_NK, few_N).predict(test.shares_NK) for law in ("additive", "log-linear", "trees")}
        ranks = {law: rank_correlation(predicted_N, test.losses[target]) for law, predicted_N in predicted.items()}
        assert ranks["additive"] > max(ranks["log-linear"], ranks["trees"]) and min(ranks.values()) > 0.6
        assert all(np.abs(predicted_N).max() < 2.6 * few_N.max() for predicted_N in predicted.values())


def test_olmix_s_table_is_read_whole() -> None:
    table = olmix_table(TABLES)
    assert table.weights_NK.shape == (127, 24) and len(table.losses) == 110
    assert table.shares_NK.sum(axis=1) == pytest.approx(1)
