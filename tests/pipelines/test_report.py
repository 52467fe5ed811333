"""The report says what a workdir holds, with nothing from outside, whatever the number and the names of its sources."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastmix_data.artefacts import write_json
from fastmix_data.catalog import Catalog, CatalogInfo, ShardRow, load_catalog
from fastmix_data.errors import CorruptArtefactError, InputError
from fastmix_data.manifest import emit_manifest, load_manifest
from fastmix_data.mixture import Mixture, load_mixture, save_mixture
from fastmix_data.recipe import EmitSection, SearchSection
from pipelines.report import report_pictures, write_report
from train.trajectory import Trajectory, TrajectoryRow

BLOCK = 1024


def make_catalog(workdir: Path, sources: list[str], *, seed: int = 0) -> Catalog:
    """A catalog with a train and a valid row for each source; the shards themselves are not written."""
    rng = np.random.default_rng(seed)
    rows = []
    for name in sources:
        for split, num_blocks in (("train", int(rng.lognormal(6, 1))), ("valid", 8)):
            path, num_tokens = f"shards/{name}/{split}.tar", num_blocks * BLOCK - 100
            counts = (num_blocks, num_tokens, num_tokens - 1, num_tokens - 1, max(1, num_tokens // 700))
            rows.append(ShardRow(name, split, path, *counts, "<u2", False, num_blocks * 3072 + 1024, "ab" * 32))
    info = CatalogInfo(BLOCK, 4096, 0, "cd" * 32, recipe_hash="ef" * 32, inputs_hash="01" * 32, sources=tuple(sources))
    Catalog(workdir, info, rows).save(workdir / "catalog.parquet")
    return load_catalog(workdir / "catalog.parquet")


def make_search(workdir: Path, catalog: Catalog, *, num_updates: int = 120, spread: float = 1.6, seed: int = 0) -> Mixture:
    """A mixture and its trajectory: weights that drift from uniform to a few favourites."""
    rng = np.random.default_rng(1000 + seed)
    num_sources = len(catalog.sources)
    goal_K = rng.normal(0, spread, num_sources)
    logits_K = np.zeros(num_sources)
    rows, weights_UK = [], []
    for update in range(num_updates):
        logits_K += 0.04 * (goal_K - logits_K) + rng.normal(0, 0.03, num_sources)
        weights_K = np.exp(logits_K) / np.exp(logits_K).sum()
        weights_UK.append(weights_K)
        scores_K = 0.3 * (goal_K - logits_K) + rng.normal(0, 0.2, num_sources)
        step = 24 + 8 * update
        loss = 4.2 + 4 * float(np.exp(-update / 12)) + float(rng.normal(0, 0.05))
        rows.append(TrajectoryRow(step, step * 4096, weights_K.tolist(), scores_K.tolist(), loss - 0.3, loss))
    Trajectory(rows).save(workdir / "search" / "trajectory.parquet", sources=catalog.sources)
    last_UK = np.array(weights_UK[num_updates // 2 :])
    answer_K = last_UK.mean(axis=0) / last_UK.mean(axis=0).sum()
    low_K, high_K = np.quantile(last_UK, [0.05, 0.95], axis=0)
    mixture = Mixture(
        weights=dict(zip(catalog.sources, answer_K.tolist(), strict=True)),
        interval={name: (low, high) for name, low, high in zip(catalog.sources, low_K.tolist(), high_K.tolist(), strict=True)},
        method="fastmix (all parameters)",
        seed=seed,
        search_tokens=3_123_456,
        search_seconds=153.2,
        num_steps=(rows[-1].step),
        num_updates=num_updates,
        target_loss={"search_start": 8.319, "search_end": 4.257, "unseen_start": 8.321, "unseen_end": 4.3141},
        num_parameters=1_147_712,
        catalog_hash=catalog.fingerprint,
        recipe_hash="23" * 32,
        trajectory_sha256="45" * 32,
    )
    save_mixture(workdir / "search" / "mixture.json", mixture)
    target = {"sources": {catalog.sources[0]: 1.0}, "files": {}}
    search = SearchSection(token_budget=4_000_000).model_dump(mode="json")
    write_json(workdir / "search" / "recipe.json", {"target": target, "search": search})
    return mixture


def make_manifest(workdir: Path, catalog: Catalog, mixture: Mixture) -> None:
    """A manifest of as many tokens as the catalog has, so that some sources reach their cap."""
    budget = int(catalog.num_tokens_K().sum() * 1.1)
    emit_manifest(catalog, mixture, emit=EmitSection(token_budget=budget, max_epochs=4.0), directory=workdir / "manifest")


def make_workdir(workdir: Path, *, num_sources: int, seed: int = 0, spread: float = 1.6) -> Path:
    """A finished run."""
    sources = [f"source_{number:03d}" for number in range(num_sources)]
    catalog = make_catalog(workdir, sources, seed=seed)
    mixture = make_search(workdir, catalog, seed=seed, spread=spread)
    make_manifest(workdir, catalog, mixture)
    return workdir


class _Loads(HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(path: Path) -> _Loads:
    parser = _Loads()
    parser.feed(path.read_text())
    return parser


def read_numbers(path: Path) -> dict[str, dict[str, str]]:
    block = re.search(r'<pre id="csv">(.*?)</pre>', path.read_text(), re.DOTALL)
    assert block is not None
    return {row["source"]: row for row in csv.DictReader(io.StringIO(html.unescape(block[1])))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workdir(tmp_path_factory.mktemp("finished"), num_sources=12)


def test_page_loads_nothing_from_outside(finished: Path, tmp_path: Path) -> None:
    page = write_report(finished, tmp_path / "report.html")
    assert read_page(page).loads == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|//cdn", page.read_text())


def test_equal_artefacts_give_equal_bytes(finished: Path, tmp_path: Path) -> None:
    first, second = write_report(finished, tmp_path / "a.html"), write_report(finished, tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()
    for one, other in zip(report_pictures(finished, tmp_path / "a"), report_pictures(finished, tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_every_number_is_there_with_all_its_digits(finished: Path, tmp_path: Path) -> None:
    numbers = read_numbers(write_report(finished, tmp_path / "report.html"))
    mixture, catalog = load_mixture(finished / "search" / "mixture.json"), load_catalog(finished / "catalog.parquet")
    manifest = load_manifest(finished / "manifest")
    assert {name: float(row["weight"]) for name, row in numbers.items()} == mixture.weights
    for source in manifest.sources:
        row = numbers[source.name]
        assert (float(row["interval_low"]), float(row["interval_high"])) == mixture.interval[source.name]
        assert int(row["unique_tokens"]) == catalog.num_tokens(source.name)
        assert (int(row["manifest_tokens"]), float(row["manifest_share"])) == (source.num_tokens, source.share)
        assert (float(row["epochs"]), float(row["max_epochs"])) == (source.epochs, source.max_epochs)
        assert row["capped"] == str(source.capped).lower()


def test_page_says_the_answer_what_it_cost_and_where_it_comes_from(finished: Path, tmp_path: Path) -> None:
    text = " ".join(" ".join(read_page(write_report(finished, tmp_path / "report.html")).text).split())
    mixture, manifest = load_mixture(finished / "search" / "mixture.json"), load_manifest(finished / "manifest")
    top = max(mixture.weights, key=mixture.weights.__getitem__)
    assert f"The mixture is {100 * mixture.weights[top]:.1f}% {top}" in text
    for expected in (
        "3.12 M tokens, 2 min 33 s on 1 rank, 120 updates",
        "from 8.321 to 4.314 nats",
        "8.3190",
        "4.2570",
        "4.3141",
    ):
        assert expected in text
    for digest in (mixture.catalog_hash, mixture.recipe_hash, mixture.trajectory_sha256, manifest.sha256, manifest.mixture_hash):
        assert digest in text


def test_sources_are_sorted_by_weight_and_capped_ones_are_marked(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, num_sources=12, seed=3, spread=3)
    page = write_report(workdir).read_text()
    mixture, manifest = load_mixture(workdir / "search" / "mixture.json"), load_manifest(workdir / "manifest")
    names = re.findall(r'<tr data-name="([^"]*)"', page)
    assert names == sorted(mixture.weights, key=lambda name: -mixture.weights[name])
    num_capped = sum(source.capped for source in manifest.sources)
    assert 0 < num_capped < 12
    assert page.count('class="bar capped"') == num_capped == page.count('<td class="capped"')


@pytest.mark.parametrize("num_sources", [1, 2, 10, 11, 27, 200])
def test_any_number_of_sources_is_drawn(tmp_path: Path, num_sources: int) -> None:
    workdir = make_workdir(tmp_path, num_sources=num_sources)
    page = write_report(workdir)
    assert page.stat().st_size < 150_000 + 1_500 * num_sources
    assert page.read_text().count("<tr data-name=") == num_sources
    assert ("others" in page.read_text().split("<script>")[0].replace("to the others.", "")) == (num_sources > 10)
    assert len(report_pictures(workdir, tmp_path / "pictures")) == 5


def test_a_search_of_one_update_is_drawn(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path, ["a", "b"])
    make_search(tmp_path, catalog, num_updates=1)
    assert "How the mixture got there" in write_report(tmp_path).read_text()


def test_what_is_not_there_yet_is_named_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `fastmix run` or `fastmix preprocess` first"):
        write_report(tmp_path)
    catalog = make_catalog(tmp_path, ["a", "b", "c"])
    page = html.unescape(write_report(tmp_path).read_text())
    assert "3 sources with" in page and "no mixture: `fastmix search` learns it" in page
    assert report_pictures(tmp_path, tmp_path / "pictures") == []
    mixture = make_search(tmp_path, catalog)
    page = html.unescape(write_report(tmp_path).read_text())
    assert "no mixture" not in page and "no manifest: `fastmix emit` writes it" in page
    make_manifest(tmp_path, catalog, mixture)
    assert "Not in this report yet" not in write_report(tmp_path).read_text()


def test_a_given_mixture_needs_neither_search_nor_catalog(tmp_path: Path) -> None:
    save_mixture(tmp_path / "search" / "mixture.json", Mixture(weights={"a": 0.75, "b": 0.25}))
    page = write_report(tmp_path).read_text()
    assert "The mixture is 75.0% a and 25.0% b." in page and "given, not learned" in page


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&\'x'
    save_mixture(tmp_path / "search" / "mixture.json", Mixture(weights={evil: 0.5, "b": 0.5}, interval={evil: (0.4, 0.6)}))
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page and html.escape("<script>alert") in page
    for picture in report_pictures(tmp_path, tmp_path / "pictures"):
        assert evil in "".join(ET.parse(picture).getroot().itertext())


def test_pictures_are_svg_that_stand_alone(finished: Path, tmp_path: Path) -> None:
    pictures = report_pictures(finished, tmp_path)
    assert sorted(path.name for path in pictures) == ["loss.svg", "manifest.svg", "mixture.svg", "scores.svg", "weights.svg"]
    for path in pictures:
        root = ET.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.attrib["width"]) > 0
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "nan" not in text.lower().replace("nance", "")


def test_artefacts_of_different_runs_are_called_out(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    mixture = load_mixture(finished / "search" / "mixture.json")
    names = list(mixture.weights)
    swapped = mixture.weights | {names[0]: mixture.weights[names[1]], names[1]: mixture.weights[names[0]]}
    other = mixture.model_copy(update={"weights": swapped, "catalog_hash": "00"})
    save_mixture(tmp_path / "run" / "search" / "mixture.json", other)
    page = html.unescape(write_report(tmp_path / "run").read_text())
    assert "learned on other data than this catalog holds" in page
    assert "written from another mixture than the one shown here" in page


def test_a_damaged_trajectory_is_refused_with_the_remedy(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "search" / "trajectory.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(CorruptArtefactError, match="fastmix search --replace") as caught:
        write_report(tmp_path / "run")
    assert "\n" not in str(caught.value)


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
MEASURE = """<script>document.body.dataset.measured = JSON.stringify({
  plots: [...document.querySelectorAll(".plot svg")].map((svg) => [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height]),
  visible: [...document.querySelectorAll("#sources tbody tr")].filter((row) => !row.hidden).length,
});
const filter = document.getElementById("filter"); filter.value = "SOURCE_11"; filter.dispatchEvent(new Event("input"));
document.body.dataset.filtered = [...document.querySelectorAll("#sources tbody tr")].filter((row) => !row.hidden).length;
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_plots_and_reports_no_error(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    page = write_report(make_workdir(tmp_path / "run", num_sources=120))
    page.write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    more = [
        "--disable-component-update",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,2000",
    ]
    done = subprocess.run(
        [CHROMIUM, *flags.split(), *more, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    measured = re.search(r'data-measured="([^"]*)"', done.stdout)
    assert measured is not None
    found = json.loads(html.unescape(measured[1]))
    assert len(found["plots"]) == 5 and all(width > 600 and height > 150 for width, height in found["plots"])
    assert found["visible"] == 40
    assert 'data-filtered="10"' in done.stdout
