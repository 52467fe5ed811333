"""Compared methods are set against uniform seed by seed, and the page says what each gained and cost."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_workdirs import make_workdir

from fastmix_data.atomic_files import write_json
from fastmix_data.errors import CorruptArtefactError
from fastmix_data.results.comparison import ComparedMethod, Comparison, load_comparison, save_comparison
from fastmix_data.results.mixture import load_mixture
from pipelines.compare.table import comparison_table, draw_comparison
from pipelines.report.method_figures import mean_interval, method_figures
from pipelines.report.page import report_pictures, write_report

LOSSES = {"uniform": [4.2, 4.4, 4.3], "fastmix": [4.0, 4.2, 4.1], "regmix:32": [4.1, 4.32, 4.18], "doremi": [4.25, 4.45, 4.35]}


def comparison(losses: dict[str, list[float]] = LOSSES, **head: str) -> Comparison:
    cost = {"search_tokens": 1_200_000, "search_seconds": 75.0, "search_flops": 2.5e15}
    methods = {name: ComparedMethod(weights={"a": 1.0}, target_loss=tuple(values), **cost) for name, values in losses.items()}
    return Comparison(methods=methods, **head)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(-5, 5))
def test_an_interval_moves_with_its_values_and_has_their_mean_in_its_middle(values: list[float], shift: float) -> None:
    first, moved = mean_interval(values), mean_interval([value + shift for value in values])
    assert first is not None and moved is not None
    assert sum(first) / 2 == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert moved == pytest.approx((first[0] + shift, first[1] + shift), abs=1e-8)


def test_methods_are_paired_by_seed_and_measured_against_the_best() -> None:
    found = {figures.name: figures for figures in method_figures(comparison())}
    assert list(found) == ["fastmix", "regmix:32", "uniform", "doremi"]
    assert found["fastmix"].interval == pytest.approx((-0.2, -0.2)) and found["fastmix"].gain_share == 1
    assert found["regmix:32"].differences == pytest.approx((-0.1, -0.08, -0.12))
    assert found["regmix:32"].interval == pytest.approx((-0.1 - 2.92 * 0.02 / 3**0.5, -0.1 + 2.92 * 0.02 / 3**0.5), abs=1e-4)
    assert found["regmix:32"].gain_share == pytest.approx(0.5) and found["doremi"].gain_share == pytest.approx(-0.25)
    assert (found["uniform"].difference, found["uniform"].interval, found["uniform"].gain_share) == (None, None, 0)


def test_without_uniform_or_a_second_seed_nothing_is_made_up() -> None:
    alone = method_figures(comparison({"doge": [4.0], "fastmix": [3.9]}))
    assert [(each.name, each.difference, each.interval, each.gain_share) for each in alone] == [
        ("fastmix", None, None, None),
        ("doge", None, None, None),
    ]
    best, _ = method_figures(comparison({"uniform": [4.0], "fastmix": [3.9]}))
    assert best.difference == pytest.approx(-0.1) and best.interval is None


@pytest.mark.parametrize("losses", [LOSSES, {"fastmix": [4.0]}, {"uniform": [4.0, 4.1], "fastmix": [3.9, 4.1]}])
def test_the_page_has_a_table_and_a_plot_of_them(tmp_path: Path, losses: dict[str, list[float]]) -> None:
    workdir = make_workdir(tmp_path, num_sources=3)
    assert "Compared with other methods" not in write_report(workdir).read_text()
    save_comparison(workdir.compare.comparison, comparison(losses))
    page = html.unescape(write_report(workdir).read_text())
    assert "Compared with other methods" in page and "1.20 M" in page and "2.5 × 10¹⁵" in page and "1 min 15 s" in page
    assert all(f"<td>{name}</td>" in page for name in losses)
    draw_comparison(comparison(losses), workdir.compare.picture)
    (picture,) = (path for path in report_pictures(workdir, tmp_path / "pictures") if path.name == "compare.svg")
    assert workdir.compare.picture.read_bytes() == picture.read_bytes()


def test_a_comparison_of_other_data_or_another_recipe_is_called_out(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, num_sources=3)
    origin = load_mixture(workdir.search.mixture).made_from
    for catalog_hash, recipe_hash, said in (
        (origin.catalog, origin.recipe, ""),
        (origin.catalog, "other", "compared with another recipe"),
        ("other", "other", "compared on other data"),
    ):
        save_comparison(workdir.compare.comparison, comparison(catalog_hash=catalog_hash, recipe_hash=recipe_hash))
        page = write_report(workdir).read_text()
        assert said in page and ("were compared" in page) == bool(said)


def test_what_is_not_a_comparison_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    save_comparison(path, comparison({"uniform": [4.0, 4.1], "fastmix": [3.9]}))
    with pytest.raises(CorruptArtefactError, match=r"uniform 2, fastmix 1.*run `fastmix compare` again"):
        load_comparison(path)
    write_json(path, {"methods": {"fastmix": {"target_loss": []}}})
    with pytest.raises(CorruptArtefactError, match=r"methods\.fastmix\.target_loss.*run `fastmix compare` again"):
        load_comparison(path)


def test_the_terminal_has_a_row_for_each_method_the_best_first() -> None:
    table = comparison_table(comparison()).splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["fastmix", "regmix:32", "uniform", "doremi"]
    assert table[2].split()[1:7] == ["4.2000", "-0.1000", "[-0.1337", "-0.0663]", "50%", "2.00"]
    ends = {line.index(loss) + len(loss) for line, loss in zip(table[1:5], ("4.1000", "4.2000", "4.3000", "4.3500"), strict=True)}
    assert len(ends) == 1
