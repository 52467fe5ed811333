"""Every result comes back as it was saved; one of another version, damaged or contradictory is refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastmix_data.atomic_files import read_json, write_json, write_parquet
from fastmix_data.errors import CorruptArtefactError, FastmixError, RecipeError
from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.results.comparison import ComparedMethod, Comparison, load_comparison, save_comparison
from fastmix_data.results.mixture import (
    Certainty,
    Limit,
    Mixture,
    Origin,
    SearchRecord,
    StartRecord,
    TargetRecord,
    TrialsRecord,
    WorstTarget,
    load_mixture,
    save_mixture,
)
from fastmix_data.results.searched_recipe import SearchedEmit, SearchedRecipe, load_searched_recipe, save_searched_recipe
from fastmix_data.results.trajectory import Trajectory, TrajectoryRow, read_trajectory

MIXTURE = Mixture(
    weights={"a": 0.75, "b": 0.25},
    method="search",
    binding={"b": "floor"},
    certainty=Certainty(
        interval={"a": (0.7, 0.8)}, signal_to_noise={"a": 3.5}, interchangeable=[["a", "b"]], seed_weights={"0": {"a": 0.75, "b": 0.25}}
    ),
    start=StartRecord(weights={"a": 0.5, "b": 0.5}),
    trials=TrialsRecord(
        mixtures={"start": {"a": 0.5, "b": 0.5}, "scores": {"a": 0.75, "b": 0.25}},
        losses={"start": {"0": 4.0, "1": 4.2}, "scores": {"0": 3.9, "1": 4.0, "2": 3.8}}, tokens={"0": 10, "1": 10, "2": 20},
        probability={"start": 0.04, "scores": 0.96}, winner="scores", ahead={"start": (0.15, 0.05, 0.25)}, noise=0.05, exponent=0.5,
        horizon_tokens=100,
    ),
    search=SearchRecord(seed=3, num_tokens=1000, seconds=1.5, stopped="its budget is used up"),
    target=TargetRecord(
        loss={"search_end": 3.9}, limits={"t": Limit(reference=4.0, loss=3.9, kept=True)}, worst=WorstTarget(target="t", regret=-0.1)
    ),
    made_from=Origin(catalog="c", recipe="r", trajectory="t"),
)  # fmt: skip
METHOD = ComparedMethod(weights={"a": 1.0}, target_loss=(3.5, 3.6), search_tokens=10)
COMPARISON = Comparison(seeds=(0, 1), token_budget=100, target={"t": 1.0}, methods={"uniform": METHOD, "fastmix": METHOD})
SEARCHED = SearchedRecipe(
    target=TargetSection(sources={"a": 1}),
    proxy=ProxySection.model_validate({}),
    deepspeed=DeepspeedSection(),
    training=TrainingSection(token_budget=2_000_000),
    search=SearchSection(),
    emit=SearchedEmit(token_budget=10**9, max_epochs={"a": 2.0}),
)

Save, Load = Callable[[Path, Any], None], Callable[[Path], Any]


@pytest.mark.parametrize(
    ("result", "save", "load"),
    [
        (MIXTURE, save_mixture, load_mixture),
        (Mixture(weights={"a": 1.0}), save_mixture, load_mixture),
        (COMPARISON, save_comparison, load_comparison),
        (SEARCHED, save_searched_recipe, load_searched_recipe),
    ],
)
def test_a_result_comes_back_as_it_was_saved(tmp_path: Path, result: Any, save: Save, load: Load) -> None:
    path = tmp_path / "folder" / "result.json"
    save(path, result)
    assert load(path) == result
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptArtefactError, match="not valid JSON") as error:
        load(path)
    assert error.value.where == str(path) and error.value.remedy


@pytest.mark.parametrize(
    ("result", "save", "load", "change", "message"),
    [
        (MIXTURE, save_mixture, load_mixture, {"schema_version": 1}, "mixture of schema version 1, this is 2; run `fastmix search"),
        (MIXTURE, save_mixture, load_mixture, {"wieghts": {}}, "wieghts: .*; a mixture is .*NAME: SHARE"),
        (MIXTURE, save_mixture, load_mixture, {"weights": {}}, "weights: .*at least 1"),
        (MIXTURE, save_mixture, load_mixture, {"weights": {"a": -0.5, "b": 1.5}}, "weights.a: -0.5 is not a share; use a number"),
        (MIXTURE, save_mixture, load_mixture, {"weights": {"a": 0.5, "b": 0.6}}, "sum to 1.1, not 1; divide each of them by 1.1"),
        (COMPARISON, save_comparison, load_comparison, {"schema_version": 9}, "not a comparison of schema version 1; delete it"),
        (COMPARISON, save_comparison, load_comparison, {"methods": {}}, "methods: .*; run `fastmix compare` again"),
        (
            COMPARISON, save_comparison, load_comparison,
            {"methods": {"uniform": {"target_loss": [1.0]}, "x": {"target_loss": [1.0, 2.0]}}}, r"not as many for all \(uniform 1, x 2\)",
        ),
        (SEARCHED, save_searched_recipe, load_searched_recipe, {"training": {}}, "not the recipe of a search of this version"),
    ],
)  # fmt: skip
def test_a_result_of_another_version_or_shape_is_refused_with_a_remedy(
    tmp_path: Path, result: Any, save: Save, load: Load, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "result.json"
    save(path, result)
    write_json(path, {**read_json(path), **change})
    with pytest.raises(FastmixError, match=message) as error:
        load(path)
    assert error.value.where.startswith(str(path)) and error.value.remedy and "\n" not in str(error.value)


def test_a_mixture_gives_its_weights_in_the_order_of_the_sources_or_says_which_are_missing() -> None:
    assert MIXTURE.weights_K(["b", "a"]).tolist() == [0.25, 0.75]
    with pytest.raises(RecipeError, match="the mixture has no weight for c, but the catalog's sources are a, b, c; name each"):
        MIXTURE.weights_K(["a", "b", "c"])
    with pytest.raises(RecipeError, match="has a weight for b"):
        MIXTURE.weights_K(["a"])
    with pytest.raises(RecipeError, match=r"weights\.a: nan is not a share"):
        Mixture(weights={"a": float("nan"), "b": 1.0}).weights_K(["a", "b"])


def test_a_missing_mixture_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no mixture; run `fastmix search` first, or give one with --mixture FILE"):
        load_mixture(tmp_path / "mixture.json")


def test_pairs_are_the_rounds_in_which_both_mixtures_were_tried() -> None:
    assert MIXTURE.trials is not None
    assert MIXTURE.trials.num_pairs("start", "scores") == 2 and MIXTURE.trials.num_pairs("scores", "scores") == 3


def test_number_of_searches_is_that_of_the_seeds() -> None:
    assert Certainty().num_searches == 1
    assert Certainty(seed_weights={"0": {"a": 1.0}, "1": {"a": 1.0}}).num_searches == 2


def test_what_another_recipe_changed_is_named_by_key() -> None:
    changed = SEARCHED.model_copy(update={"training": SEARCHED.training.with_seed(5), "emit": None})
    assert changed.changed_keys(SEARCHED) == ["training.seed", "emit.token_budget", "emit.max_epochs"]
    assert changed.hash != SEARCHED.hash and SEARCHED.changed_keys(SEARCHED) == []


def _row(step: int) -> TrajectoryRow:
    return TrajectoryRow(
        step=step, tokens=10 * step, weights=[0.5, 0.5 / step], scores=[1.0, -1.0], train_loss=4.0, target_loss=5.0 / step,
        target_weights=[1.0], target_losses=[None if step == 1 else 3.0], alignment=[0.1, 0.2], divisor=[1.0, 0.0], loss=[2.0, 0.0],
    )  # fmt: skip


def test_a_trajectory_comes_back_as_arrays_in_the_order_of_its_names(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.parquet"
    rows = [_row(step) for step in (1, 2, 4)]
    trajectory = Trajectory(rows)
    trajectory.save(path, sources=["a", "b"], targets=["t"])
    table = read_trajectory(path)
    assert table is not None and (table.sources, table.targets) == (("a", "b"), ("t",))
    assert table.tokens_U.tolist() == [10, 20, 40] and table.weights_UK.tolist() == [row.weights for row in rows]
    assert np.isnan(table.target_losses_UG[0, 0]) and table.target_losses_UG[1:].tolist() == [[3.0], [3.0]]
    assert table.target_weights_UG.shape == (3, 1) and table.scores_UK.shape == (3, 2)
    assert Trajectory.from_state(trajectory.state()).rows == rows
    assert trajectory.weights_since(1).tolist() == [[0.5, 0.25], [0.5, 0.125]]
    assert trajectory.weights_since(9).tolist() == [[0.5, 0.125]]


def test_a_trajectory_without_rows_is_none_and_what_is_no_trajectory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.parquet"
    Trajectory().save(path, sources=["a"], targets=["t"])
    assert read_trajectory(path) is None
    for damage in (lambda: write_parquet(path, pa.table({"step": [1]})), lambda: path.write_bytes(b"PAR1" * 5)):
        damage()
        with pytest.raises(CorruptArtefactError, match="not a trajectory of fastmix; run `fastmix search --replace`"):
            read_trajectory(path)
