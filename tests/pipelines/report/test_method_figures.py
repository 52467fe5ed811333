"""Compared methods are set against uniform seed by seed, and the page says what each gained and cost."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_workdirs import make_workdir

from fastmix_data.artefacts import write_json
from fastmix_data.errors import CorruptArtefactError
from fastmix_data.results.mixture import load_mixture
from pipelines.report.intervals import mean_interval, t_quantile
from pipelines.report.method_figures import ComparedMethod, Comparison, method_figures, read_comparison
from pipelines.report.page import report_pictures, write_report

LOSSES = {"uniform": [4.2, 4.4, 4.3], "fastmix": [4.0, 4.2, 4.1], "regmix:32": [4.1, 4.32, 4.18], "doremi": [4.25, 4.45, 4.35]}


def entry(losses: list[float], **cost: float) -> dict[str, Any]:
    return {
        "weights": {"a": 1.0},
        "target_loss": losses,
        "search_tokens": 1_200_000,
        "search_seconds": 75.0,
        "search_flops": 2.5e15,
    } | cost


def write_comparison(workdir: Path, losses: dict[str, list[float]] = LOSSES, **head: object) -> None:
    write_json(
        workdir / "compare" / "compare.json", {**head, "methods": {name: entry(values) for name, values in losses.items()}}
    )


def test_quantiles_are_those_of_a_table() -> None:
    printed = {1: (6.314, 12.706), 2: (2.920, 4.303), 3: (2.353, 3.182), 4: (2.132, 2.776), 9: (1.833, 2.262), 30: (1.697, 2.042)}
    for degrees, row in printed.items():
        assert tuple(round(t_quantile(level, degrees=degrees), 3) for level in (0.9, 0.95)) == row


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(-5, 5))
def test_an_interval_moves_with_its_values_and_has_their_mean_in_its_middle(values: list[float], shift: float) -> None:
    first, moved = mean_interval(values), mean_interval([value + shift for value in values])
    assert first is not None and moved is not None
    assert sum(first) / 2 == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert moved == pytest.approx((first[0] + shift, first[1] + shift), abs=1e-8)


def test_methods_are_paired_by_seed_and_measured_against_the_best() -> None:
    methods = {name: ComparedMethod(target_loss=tuple(values)) for name, values in LOSSES.items()}
    found = {figures.name: figures for figures in method_figures(Comparison(methods=methods))}
    assert list(found) == ["fastmix", "regmix:32", "uniform", "doremi"]
    assert found["fastmix"].interval == pytest.approx((-0.2, -0.2)) and found["fastmix"].gain_share == 1
    assert found["regmix:32"].differences == pytest.approx((-0.1, -0.08, -0.12))
    assert found["regmix:32"].interval == pytest.approx((-0.1 - 2.92 * 0.02 / 3**0.5, -0.1 + 2.92 * 0.02 / 3**0.5), abs=1e-4)
    assert found["regmix:32"].gain_share == pytest.approx(0.5) and found["doremi"].gain_share == pytest.approx(-0.25)
    assert (found["uniform"].difference, found["uniform"].interval, found["uniform"].gain_share) == (None, None, 0)


def test_without_uniform_or_a_second_seed_nothing_is_made_up() -> None:
    alone = method_figures(
        Comparison(methods={"doge": ComparedMethod(target_loss=(4.0,)), "fastmix": ComparedMethod(target_loss=(3.9,))})
    )
    assert [(each.name, each.difference, each.interval, each.gain_share) for each in alone] == [
        ("fastmix", None, None, None),
        ("doge", None, None, None),
    ]
    pair = Comparison(methods={"uniform": ComparedMethod(target_loss=(4.0,)), "fastmix": ComparedMethod(target_loss=(3.9,))})
    assert method_figures(pair)[0].difference == pytest.approx(-0.1) and method_figures(pair)[0].interval is None


@pytest.mark.parametrize("losses", [LOSSES, {"fastmix": [4.0]}, {"uniform": [4.0, 4.1], "fastmix": [3.9, 4.1]}])
def test_the_page_has_a_table_and_a_plot_of_them(tmp_path: Path, losses: dict[str, list[float]]) -> None:
    workdir = make_workdir(tmp_path, num_sources=3)
    assert "Compared with other methods" not in write_report(workdir).read_text()
    write_comparison(workdir, losses)
    page = html.unescape(write_report(workdir).read_text())
    assert "Compared with other methods" in page and "1.20 M" in page and "2.5 × 10¹⁵" in page and "1 min 15 s" in page
    assert all(f"<td>{name}</td>" in page for name in losses)
    assert "compare.svg" in {path.name for path in report_pictures(workdir, tmp_path / "pictures")}


def test_a_comparison_of_other_data_or_another_recipe_is_called_out(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, num_sources=3)
    mixture = load_mixture(workdir / "search" / "mixture.json")
    write_comparison(workdir, catalog_hash=mixture.catalog_hash, recipe_hash=mixture.recipe_hash)
    assert "were compared" not in write_report(workdir).read_text()
    write_comparison(workdir, catalog_hash=mixture.catalog_hash, recipe_hash="other")
    assert "compared with another recipe" in write_report(workdir).read_text()
    write_comparison(workdir, catalog_hash="other", recipe_hash="other")
    assert "compared on other data" in write_report(workdir).read_text()


def test_what_is_not_a_comparison_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "compare" / "compare.json"
    write_comparison(tmp_path, {"uniform": [4.0, 4.1], "fastmix": [3.9]})
    with pytest.raises(CorruptArtefactError, match=r"uniform 2, fastmix 1.*run `fastmix compare` again"):
        read_comparison(path)
    write_json(path, {"methods": {"fastmix": {"target_loss": []}}})
    with pytest.raises(CorruptArtefactError, match=r"methods\.fastmix\.target_loss.*run `fastmix compare` again"):
        read_comparison(path)
