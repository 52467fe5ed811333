"""`fastmix fit` as a user drives it: two tables in, a mixture within bounds out, and one line for every row that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fastmix_data.results.mixture import load_mixture
from pipelines.cli.main import main
from pipelines.fit.swarm_table import read_swarm
from train.baselines.laws.additive import AdditiveLaw
from train.baselines.swarm import swarm_weights

SOURCES = ("web", "code", "books", "wiki")
LAW = AdditiveLaw(2.0, np.log([0.8, 0.1, 0.4, 0.2]), 0.5)
NUM_RUNS = 24
Lines = list[str]


def swarm_tables() -> tuple[Lines, Lines]:
    """Lines of ratios.csv and metrics.csv as Olmix writes them, with shares rounded to 0.001; metrics in another order and with a gap."""
    weights_NK = swarm_weights(np.full(4, 0.25), num_mixtures=NUM_RUNS, seed=0).round(3)
    losses_N = LAW.predict(weights_NK) + np.random.default_rng(0).normal(0, 0.003, NUM_RUNS)
    ratios, metrics = [",run,name,index," + ",".join(SOURCES)], [",run,name,index,loss,score,same,gappy"]
    for number, (weights_K, loss) in enumerate(zip(weights_NK.tolist(), losses_N.tolist(), strict=True)):
        who = f"{number},run{number},swarm-{number:04},{number}"
        ratios.append(f"{who},{','.join(map(str, weights_K))}")
        metrics.insert(1, f"{who},{loss},{-loss},7,{'' if number == 3 else loss}")
    return ratios, metrics


def fit(folder: Path, *options: object, target: str = "loss", code: int = 0) -> Result:
    arguments = ["fit", folder / "ratios.csv", folder / "metrics.csv", "--target", target, *options]
    finished = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert finished.exit_code == code, finished.output
    return finished


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    write(tmp_path, *swarm_tables())
    return tmp_path


def write(folder: Path, ratios: Lines, metrics: Lines) -> None:
    (folder / "ratios.csv").write_text("\n".join(ratios) + "\n")
    (folder / "metrics.csv").write_text("\n".join(metrics) + "\n")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with both tables and the mixture of a fit with a cap, and what was printed."""
    folder = tmp_path_factory.mktemp("fitted")
    write(folder, *swarm_tables())
    return folder, fit(folder, "--cap", "web=0.4").output


def test_the_law_of_the_swarm_is_chosen_and_its_best_mixture_keeps_to_the_caps(fitted: tuple[Path, str]) -> None:
    folder, shown = fitted
    mixture = load_mixture(folder / "mixture.json")
    record = mixture.fit
    assert record is not None and record.law == "additive" and mixture.binding == {"web": "ceiling"}
    # c^(1 / (1 - gamma)) with the cap: the others share the rest as 0.01 : 0.16 : 0.04.
    assert list(mixture.weights.values()) == pytest.approx([0.4, 0.6 / 21, 0.6 * 16 / 21, 0.6 * 4 / 21], abs=0.04)
    assert record.laws["additive"].rank_correlation > 0.98 and record.laws["additive"].error < 0.03
    assert record.noise_floor == pytest.approx(2.33 * record.laws["additive"].error, rel=1e-2)
    assert record.predicted < record.predicted_centre - record.noise_floor
    for text in ("additive (chosen)", "rank correlation", "web (ceiling)", "noise floor", "rows did not sum to 1 exactly"):
        assert text in shown
    run = int(record.best_run.removeprefix("run"))
    swarm = read_swarm(folder / "ratios.csv", folder / "metrics.csv", targets=["loss"])
    assert swarm.weights_NK[run, 0] <= 0.4 and record.best_measured == pytest.approx(swarm.measured_GN[0, run])


def test_scores_are_losses_turned_round(fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    low = load_mixture(folder / "mixture.json")
    options = ("--cap", "web=0.4", "--higher-is-better", "--json", "--out", folder / "score.json")
    high = json.loads(fit(folder, *options, target="score").stdout)
    assert low.fit is not None and high["weights"] == pytest.approx(low.weights, abs=1e-6)
    assert high["fit"]["predicted"] == pytest.approx(-low.fit.predicted)
    assert high["fit"]["best_run"] == low.fit.best_run


def test_a_fit_that_is_there_is_kept_and_another_one_is_refused(fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    before = (folder / "mixture.json").read_bytes()
    assert "nothing to do" in fit(folder, "--cap", "web=0.4").output
    for options in (("--cap", "web=0.5"), ("--cap", "web=0.4", "--higher-is-better")):
        assert "another --out, or --replace" in fit(folder, *options, code=2).output
    assert (folder / "mixture.json").read_bytes() == before


def test_a_metric_of_chance_is_no_answer_without_a_warning(tables: Path) -> None:
    ratios, metrics = swarm_tables()
    chance = np.random.default_rng(1).normal(size=NUM_RUNS).tolist()
    metrics = [f"{line},{value}" for line, value in zip(metrics, ["chance", *chance], strict=True)]
    write(tables, ratios, metrics)
    assert "warning: no law tells these runs apart" in fit(tables, target="chance").output


def replaced(number: int, column: int, cell: str) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        cells = lines[number].split(",")
        cells[column] = cell
        lines[number] = ",".join(cells)

    return change


def repeated(lines: Lines) -> None:
    lines.append(lines[5])


def shortened(lines: Lines) -> None:
    lines[4] = lines[4].rpartition(",")[0]


def removed(lines: Lines) -> None:
    del lines[9]


def emptied(lines: Lines) -> None:
    del lines[1:]


def without_names(lines: Lines) -> None:
    lines[0] = lines[0].replace("run,name,index", "a,b,c")


@pytest.mark.parametrize(
    ("table", "change", "options", "messages"),
    [
        ("ratios", replaced(3, 4, "0.9"), {}, ("ratios.csv, line 4", "not 1", "divide")),
        ("ratios", replaced(3, 4, "-0.1"), {}, ("ratios.csv, line 4", "web is -0.1", "from 0 to 1")),
        ("ratios", replaced(3, 4, "nan"), {}, ("ratios.csv, line 4", "web is 'nan'", "write a number")),
        ("ratios", replaced(0, 5, "web"), {}, ("ratios.csv", "two columns web")),
        ("ratios", repeated, {}, (f"ratios.csv, line {NUM_RUNS + 2}", "run4", "line 6 already")),
        ("ratios", shortened, {}, ("ratios.csv, line 5", "7 cells, the header has 8")),
        ("ratios", removed, {}, ("metrics.csv, line 17", "run8 has no row in", "ratios.csv")),
        ("ratios", emptied, {}, ("ratios.csv", "no rows")),
        ("ratios", without_names, {}, ("no column in common", "run or run_id or index or name")),
        ("metrics", removed, {}, ("ratios.csv, line 17", "run15 has no row in", "metrics.csv")),
        ("metrics", replaced(2, 4, "n/a"), {}, ("metrics.csv, line 3", "loss is 'n/a'", "remove the run from both")),
        ("metrics", replaced(2, 1, ""), {}, ("metrics.csv, line 3", "run is empty")),
        (None, None, {"target": "los"}, ("--target los", "did you mean loss?")),
        (None, None, {"target": "same"}, ("metrics.csv", "same is 7 in every run")),
        (None, None, {"target": "gappy"}, ("metrics.csv, line 22", "gappy is empty")),
        (None, None, {"more": ("--target", "loss")}, ("--target loss", "given twice")),
        (None, None, {"more": ("--cap", "wbe=0.3")}, ("--cap wbe=0.3", "did you mean web?")),
        (None, None, {"more": ("--cap", "web=3")}, ("--cap web=3", "--cap NAME=0.3")),
        (None, None, {"more": sum((("--cap", f"{name}=0.2") for name in SOURCES), ())}, ("they allow 0.8 in all, less than 1",)),
    ],
)  # fmt: skip
def test_tables_and_options_that_cannot_be_are_one_line(
    tables: Path, table: str | None, change: Callable[[Lines], None], options: dict[str, Any], messages: tuple[str, ...]
) -> None:
    ratios, metrics = swarm_tables()
    if table is not None:
        change(ratios if table == "ratios" else metrics)
    write(tables, ratios, metrics)
    refused = fit(tables, *options.get("more", ()), target=options.get("target", "loss"), code=2)
    assert refused.output.startswith("error: ") and refused.output.count("\n") == 1
    for message in messages:
        assert message in refused.output
    assert not (tables / "mixture.json").exists()


def test_few_runs_and_files_that_are_no_tables_are_refused(tables: Path) -> None:
    ratios, metrics = swarm_tables()
    write(tables, ratios[:6], [metrics[0], *metrics[-5:]])
    assert "5 runs, and a fit needs 8 or more" in fit(tables, code=2).output
    (tables / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as CSV" in fit(tables, code=2).output
    (tables / "metrics.csv").unlink()
    assert "No such file" in fit(tables, code=2).output
