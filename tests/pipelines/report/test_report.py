"""The report says what a workdir holds, with nothing from outside, whatever the number and the names of its sources."""

from __future__ import annotations

import csv
import html
import io
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_workdirs import (
    change_mixture,
    hundreds_of_sources,
    make_catalog,
    make_manifest,
    make_search,
    make_workdir,
    searched_recipe,
    update_row,
)

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.errors import CorruptArtefactError, InputError
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.recipe.constraints import GroupSection
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Certainty, Limit, Mixture, TrialsRecord, WorstTarget, load_mixture, save_mixture
from fastmix_data.results.searched_recipe import save_searched_recipe
from fastmix_data.results.trajectory import Trajectory
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.workdir import Workdir
from pipelines.report.page import report_pictures, write_report


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


def text_of(path: Path) -> str:
    return " ".join(" ".join(read_page(path).text).split())


def copy_of(workdir: Workdir, folder: Path) -> Workdir:
    return Workdir(shutil.copytree(workdir.root, folder / "run"))


def read_numbers(path: Path) -> dict[str, dict[str, str]]:
    block = re.search(r'<pre id="csv">(.*?)</pre>', path.read_text(), re.DOTALL)
    assert block is not None
    return {row["source"]: row for row in csv.DictReader(io.StringIO(html.unescape(block[1])))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    return make_workdir(tmp_path_factory.mktemp("finished"), num_sources=12)


def test_page_and_pictures_load_nothing_from_outside(finished: Workdir, tmp_path: Path) -> None:
    page = write_report(finished, tmp_path / "report.html")
    assert read_page(page).loads == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|//cdn", page.read_text())
    pictures = report_pictures(finished, tmp_path)
    assert sorted(path.name for path in pictures) == ["loss.svg", "manifest.svg", "mixture.svg", "scores.svg", "weights.svg"]
    for path in pictures:
        root = ET.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.attrib["width"]) > 0
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "nan" not in text.lower().replace("nance", "")


def test_equal_artefacts_give_equal_bytes(finished: Workdir, tmp_path: Path) -> None:
    first, second = write_report(finished, tmp_path / "a.html"), write_report(finished, tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()
    for one, other in zip(report_pictures(finished, tmp_path / "a"), report_pictures(finished, tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_every_number_is_there_with_all_its_digits(finished: Workdir, tmp_path: Path) -> None:
    numbers = read_numbers(write_report(finished, tmp_path / "report.html"))
    mixture, catalog = load_mixture(finished.search.mixture), load_catalog(finished.catalog)
    manifest = load_manifest(finished.manifest.root)
    assert {name: float(row["weight"]) for name, row in numbers.items()} == mixture.weights
    for source in manifest.sources:
        row = numbers[source.name]
        assert (float(row["interval_low"]), float(row["interval_high"])) == mixture.certainty.interval[source.name]
        assert int(row["unique_tokens"]) == catalog.num_tokens(source.name)
        assert (int(row["manifest_tokens"]), float(row["manifest_share"])) == (source.num_tokens, source.share)
        assert (float(row["epochs"]), float(row["max_epochs"])) == (source.epochs, source.max_epochs)
        assert row["capped"] == str(source.capped).lower()


def test_page_says_the_answer_what_it_cost_and_where_it_comes_from(finished: Workdir, tmp_path: Path) -> None:
    text = text_of(write_report(finished, tmp_path / "report.html"))
    mixture, manifest = load_mixture(finished.search.mixture), load_manifest(finished.manifest.root)
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
    origin = mixture.made_from
    for digest in (origin.catalog, origin.recipe, origin.trajectory, manifest.sha256, manifest.mixture_hash):
        assert digest in text
    for setting in ("target source_000", "training.token_budget 4000000", "training.seed 0", "search.update_interval 16"):
        assert setting in text


def test_sources_are_sorted_by_weight_and_capped_ones_are_marked(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, num_sources=12, seed=3, spread=3)
    page = write_report(workdir).read_text()
    mixture, manifest = load_mixture(workdir.search.mixture), load_manifest(workdir.manifest.root)
    names = re.findall(r'<tr data-name="([^"]*)"', page)
    assert names == sorted(mixture.weights, key=lambda name: -mixture.weights[name])
    num_capped = sum(source.capped for source in manifest.sources)
    assert 0 < num_capped < 12
    assert page.count('class="bar capped"') == num_capped == page.count('<td class="capped"')


@pytest.mark.parametrize("num_sources", [1, 2, 10, 11, 27, 200])
def test_any_number_of_sources_is_drawn(tmp_path: Path, num_sources: int) -> None:
    workdir = make_workdir(tmp_path, num_sources=num_sources)
    page = write_report(workdir)
    assert page == workdir.report and page.stat().st_size < 150_000 + 1_500 * num_sources
    assert page.read_text().count("<tr data-name=") == num_sources
    assert ("others" in page.read_text().split("<script>")[0].replace("to the others.", "")) == (num_sources > 10)
    assert len(report_pictures(workdir, tmp_path / "pictures")) == 5


def test_a_search_of_one_update_is_drawn(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    make_search(workdir, make_catalog(workdir, ["a", "b"]), num_updates=1)
    assert "Where the scores led" in write_report(workdir).read_text()


def test_what_is_not_there_yet_is_named_with_its_command(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    with pytest.raises(InputError, match="run `fastmix run` or `fastmix preprocess` first"):
        write_report(workdir)
    catalog = make_catalog(workdir, ["a", "b", "c"])
    page = html.unescape(write_report(workdir).read_text())
    assert "3 sources with" in page and "no mixture: `fastmix search` learns it" in page
    assert report_pictures(workdir, tmp_path / "pictures") == []
    mixture = make_search(workdir, catalog)
    page = html.unescape(write_report(workdir).read_text())
    assert "no mixture" not in page and "no manifest: `fastmix emit` writes it" in page
    make_manifest(workdir, catalog, mixture)
    assert "Not in this report yet" not in write_report(workdir).read_text()


def test_phases_of_a_manifest_are_listed_and_are_no_other_mixture(tmp_path: Path) -> None:
    paths = Workdir(tmp_path)
    catalog = make_catalog(paths, ["a", "b", "c"])
    mixture = make_search(paths, catalog)
    budget = int(catalog.num_tokens_K().sum())
    phases = [{"tokens": "75%", "weights": {"b": 3, "c": 1}}, {"tokens": "25%"}]
    emit = EmitSection.model_validate({"token_budget": budget, "max_epochs": 9, "phases": phases})
    emit_manifest(catalog, mixture, emit=emit, directory=paths.manifest.root)
    page = html.unescape(write_report(paths).read_text())
    assert "phase 0" in page and "75% b, 25% c" in page and "phase 1" in page
    assert "written from another mixture" not in page


def test_a_given_mixture_needs_neither_search_nor_catalog_and_its_names_are_escaped(tmp_path: Path) -> None:
    workdir, evil = Workdir(tmp_path), '<script>alert("1")</script>&\'x'
    mixture = Mixture(weights={evil: 0.75, "b": 0.25}, certainty=Certainty(interval={evil: (0.4, 0.6)}))
    save_mixture(workdir.search.mixture, mixture)
    page = write_report(workdir).read_text()
    assert f"The mixture is 75.0% {evil} and 25.0% b." in html.unescape(page) and "given, not learned" in page
    assert "<script>alert" not in page and html.escape("<script>alert") in page
    for picture in report_pictures(workdir, tmp_path / "pictures"):
        assert evil in "".join(ET.parse(picture).getroot().itertext())


def test_artefacts_of_different_runs_are_called_out(finished: Workdir, tmp_path: Path) -> None:
    workdir = copy_of(finished, tmp_path)
    weights = load_mixture(workdir.search.mixture).weights
    first, second, *_ = weights
    change_mixture(workdir, weights=weights | {first: weights[second], second: weights[first]}, made_from={"catalog": "00"})
    page = html.unescape(write_report(workdir).read_text())
    assert "learned on other data than this catalog holds" in page
    assert "written from another mixture than the one shown here" in page


def test_the_recipe_of_another_version_is_left_out_and_the_page_says_so(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, sources=["web", "c", "python", "law"])
    groups = {"code": GroupSection(sources=("c", "python"), max=0.3)}
    save_searched_recipe(workdir.search.recipe, searched_recipe(["web"], groups))
    page = write_report(workdir).read_text()
    assert "averaged into the answer" in page and "at most 30.0%" in page and "left out" not in page
    content = read_json(workdir.search.recipe)
    write_json(workdir.search.recipe, content | {"search": content["search"] | {"an_older_key": 1}})
    page = html.unescape(write_report(workdir).read_text())
    assert "left out: recipe.json is not the recipe of a search of this version; run `fastmix search --replace`." in page
    assert not any(text in page for text in ("averaged into the answer", "at most 30.0%", "<td>search.update_interval</td>"))
    assert "The mixture is" in page


def test_a_damaged_trajectory_is_refused_with_the_remedy(finished: Workdir, tmp_path: Path) -> None:
    workdir = copy_of(finished, tmp_path)
    workdir.search.trajectory.write_bytes(b"PAR1 not really")
    with pytest.raises(CorruptArtefactError, match="fastmix search --replace") as caught:
        write_report(workdir)
    assert "\n" not in str(caught.value)


def test_hundreds_of_sources_stay_readable_in_one_small_page(tmp_path: Path) -> None:
    names = hundreds_of_sources(512)
    workdir = make_workdir(tmp_path, sources=names)
    page = write_report(workdir)
    source = page.read_text()
    assert page.stat().st_size < 800_000
    assert source.count("<tr data-name=") == 512 and set(read_numbers(page)) == set(names)
    assert "492 others" in source and source.count('class="bar c') < 200
    weights = load_mixture(workdir.search.mixture).weights
    code = sum(weight for name, weight in weights.items() if name.startswith("code_"))
    sums = re.search(r'<tr class="sums" data-group-name="code">.*?</tr>', source, re.DOTALL)
    assert sums is not None and f">{100 * code:.1f}%</td>" in sums[0]
    assert f"{sum(name.startswith('code_') for name in names)} sources" in sums[0]
    num_rest = sum(name.startswith("code_") for name in sorted(names, key=lambda name: -weights[name])[9:])
    assert f"code: {num_rest} others" in source and "503 others" in source
    assert 'data-group-name="in no group"' in source and "4 sources" in source


def test_page_needs_no_script(tmp_path: Path) -> None:
    page = write_report(make_workdir(tmp_path, sources=hundreds_of_sources(60))).read_text().split("<script>")[0]
    rows = re.findall(r"<tr (?:class|data-name)[^>]*>", page)
    assert len(rows) == 60 + 8 and not any("hidden" in row for row in rows)
    table = page[page.index('<section id="numbers"') :]
    controls = re.search(r'<div class="tools scripted" hidden>.*?</div>', table, re.DOTALL)
    assert controls is not None
    assert "<button" not in table.replace(controls[0], "") and "<input" not in table.replace(controls[0], "")


def test_groups_of_the_recipe_come_with_bounds_and_what_holds(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, sources=["web", "c", "python", "law"])
    save_searched_recipe(
        workdir.search.recipe, searched_recipe(["web"], {"code": GroupSection(sources=("c", "python"), max=0.3)})
    )
    change_mixture(workdir, binding={"code": "group max", "web": "ceiling", "law": "epoch cap"})
    page = write_report(workdir)
    assert "Held at the recipe's bounds: group max: code; ceiling: web; epoch cap: law." in text_of(page)
    row = re.search(r'<tr class="sums" data-group-name="code">.*?</tr>', page.read_text(), re.DOTALL)
    assert row is not None and "2 sources, at most 30.0%" in row[0] and ">group max</td>" in row[0]
    numbers = read_numbers(page)
    assert {name: row["held_at"] for name, row in numbers.items()} == {
        "web": "ceiling",
        "law": "epoch cap",
        "c": "",
        "python": "",
    }
    assert numbers["c"]["group"] == "code" and numbers["web"]["group"] == ""
    assert "groups.svg" in {path.name for path in report_pictures(workdir, tmp_path / "pictures")}


def test_certainty_of_the_weights_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, num_sources=4)
    plain = text_of(write_report(workdir))
    assert not any(word in plain for word in ("signal to noise", "Interchangeable", "Circles", "Held at", "The search ended"))
    weights = load_mixture(workdir.search.mixture).weights
    names = list(weights)
    certainty = {
        "signal_to_noise": dict(zip(names, (3.25, -1.5, 0.0, 7.0), strict=True)),
        "interchangeable": [names[:2]],
        "seed_weights": {"0": weights, "1": weights},
        "seed_interval": {name: (weight / 2, weight * 1.5) for name, weight in weights.items()},
    }
    mixture = change_mixture(workdir, certainty=certainty, search={"stopped": "the mixture stood still"})
    page = write_report(workdir)
    text, numbers = text_of(page), read_numbers(page)
    assert "The search ended: the mixture stood still." in text
    assert f"only their sum is settled: {names[0]} and {names[1]}." in text
    assert "Learned while 2 proxies of 1.15 M parameters each trained" in text and "Of the first of these searches" in text
    assert "mean of 2 searches" in text and page.read_text().count('class="seed-dot"') >= 2 * 4
    assert "+3.2" in text and "-1.5" in text
    assert {name: float(row["signal_to_noise"]) for name, row in numbers.items()} == certainty["signal_to_noise"]
    for name, (low, high) in mixture.certainty.interval.items():
        assert (float(numbers[name]["interval_low"]), float(numbers[name]["interval_high"])) == (low, high)
        assert float(numbers[name]["seed_interval_high"]) == weights[name] * 1.5
    assert [row["interchangeable_set"] for row in (numbers[name] for name in names)] == ["1", "1", "", ""]


def test_sources_with_prompts_are_counted_in_loss_tokens_and_examples_too(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, num_sources=3)
    assert "unique_examples" not in next(iter(read_numbers(write_report(workdir)).values()))
    catalog = load_catalog(workdir.catalog)
    rows = [replace(row, has_mask=True, num_loss_tokens=row.num_tokens // 4) for row in catalog.rows]
    catalog = Catalog(catalog.root, catalog.info, rows)
    catalog.save(workdir.catalog)
    weights = load_mixture(workdir.search.mixture).weights
    shares = catalog.counted(np.array([weights[name] for name in catalog.sources]))
    change_mixture(workdir, shares=shares)
    page = write_report(workdir)
    numbers, text = read_numbers(page), text_of(page)
    assert "of loss tokens" in text and "of examples" in text
    assert re.search(r"training tokens \S+( [KM])? loss tokens \S+( [KM])? examples \d", text)
    for row in (row for row in rows if row.split == "train"):
        found = numbers[row.source]
        assert (int(found["unique_loss_tokens"]), int(found["unique_examples"])) == (row.num_loss_tokens, row.num_documents)
        assert float(found["weight_in_examples"]) == shares["examples"][row.source]


def make_targets(workdir: Workdir, *, moving: bool) -> None:
    """Three targets, of which the last is in no batch at first; the first is beyond its limit."""
    names, sources = ["verse", "code", "sums"], list(load_mixture(workdir.search.mixture).weights)
    rows, uniform_K = [], [1 / len(sources)] * len(sources)
    for step in range(1, 21):
        drift, losses = 0.01 * step * moving, [5.0 - step / 10, 4.0, None if step < 3 else 6.0]
        weights = [0.3 + drift, 0.4, 0.3 - drift]
        rows.append(update_row(step, uniform_K, uniform_K, target_weights=weights, target_losses=losses))
    Trajectory(rows).save(workdir.search.trajectory, sources=sources, targets=names)
    target = {
        "losses": {name: {"search_end": 4.25, "unseen_end": 4.5, "reference_end": 4.0} for name in names},
        "weights": dict(zip(names, (0.4, 0.4, 0.2), strict=True)),
        "limits": {name: Limit(reference=4.0, loss=4.25, kept=name != "verse") for name in names} if moving else {},
        "worst": WorstTarget(target="verse", regret=0.25) if moving else None,
    }
    change_mixture(workdir, target=target)


def make_trials(sources: list[str], *, winner: str) -> TrialsRecord:
    """Of three mixtures in rounds of 1 M tokens: the last is dropped after two, and the other two are hardly apart."""
    others = {"start": (0.004, -0.010, 0.018), "scores": (0.004, -0.010, 0.018), "proportional": (0.200, 0.120, 0.280)}
    return TrialsRecord(
        mixtures={name: {source: 1 / len(sources) for source in sources} for name in ("start", "scores", "proportional")},
        losses={"start": dict.fromkeys("0123", 4.0), "scores": dict.fromkeys("0123", 4.0), "proportional": {"0": 4.3, "1": 4.3}},
        tokens=dict.fromkeys("0123", 1_000_000),
        probability={"start": 0.3, "scores": 0.7, "proportional": 0.0},
        winner=winner,
        ahead={name: found for name, found in others.items() if name != winner},
        noise=0.02,
        exponent=0.5,
        horizon_tokens=4_000_000,
    )


def test_trials_are_a_table_that_claims_nothing_below_their_noise(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, num_sources=4)
    assert "What trials say" not in text_of(write_report(workdir)) and "averaged into the answer" in workdir.report.read_text()
    sources = list(load_mixture(workdir.search.mixture).weights)
    mixture = load_mixture(workdir.search.mixture).model_copy(update={"trials": make_trials(sources, winner="start")})
    save_mixture(workdir.search.mixture, mixture)
    budget = load_manifest(workdir.manifest.root).token_budget
    text = text_of(write_report(workdir))
    assert "The answer is the start, by 10 short trials: it is ahead of proportional shares by 0.200 nats." in text
    assert "It cannot be told from the mixture of the scores." in text
    assert "known to 0.020 nats: two of them on one mixture differ by up to 0.047 (90%)" in text
    # Production is of another length than the search's 4 M tokens, and differences go by the root of it here.
    ahead = 0.2 * (4_000_000 / budget) ** 0.5
    assert f"0% +0.200 +0.120 to +0.280 2 {ahead:+.3f}" in text and "70% +0.004 -0.010 to +0.018 4" in text
    assert text.index("start (the answer)") < text.index("70% +0.004")
    assert "averaged and tried" in workdir.report.read_text()
    save_mixture(workdir.search.mixture, mixture.model_copy(update={"trials": make_trials(sources, winner="scores")}))
    assert "averaged into the answer" in write_report(workdir).read_text()


def test_targets_are_shown_each_and_a_broken_limit_is_a_warning(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path, num_sources=3)
    make_targets(workdir, moving=False)
    text = text_of(write_report(workdir))
    assert "Weights of the targets" not in text and "Not kept" not in text and "largest regret" not in text
    assert "verse 40.0%" in text
    make_targets(workdir, moving=True)
    text = text_of(write_report(workdir))
    assert "Not kept: target.not_worse_than, on verse by 0.250 nats." in text
    assert "The largest regret is that of verse: +0.2500 nats against the reference run." in text
    assert "verse 40.0% 4.5000 4.2500 4.0000 +0.2500 not kept" in text
    pictures = {path.name: path.read_text() for path in report_pictures(workdir, tmp_path / "pictures")}
    assert {"targets.svg", "target_weights.svg"} <= pictures.keys()
    assert all("nan" not in picture for picture in pictures.values())
