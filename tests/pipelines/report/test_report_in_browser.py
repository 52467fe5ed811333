"""In a browser the page shows its plots, reports no error, and its table is sorted, filtered and folded."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_workdirs import hundreds_of_sources, make_workdir

from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.results.mixture import load_mixture
from fastmix_data.workdir import Workdir
from pipelines.report.page import write_report

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --enable-logging=stderr --window-size=1200,2000 --dump-dom"
)
LOOK = """
const rows = () => [...document.querySelectorAll("#sources tbody tr")].filter((row) => !row.hidden);
const look = () => ({
  sources: rows().filter((row) => row.dataset.name).map((row) => row.dataset.name),
  groups: rows().filter((row) => row.dataset.groupName).map((row) => row.dataset.groupName),
  sorted: [...document.querySelectorAll("#sources thead th[aria-sort]")].map((head) => [head.dataset.key, head.getAttribute("aria-sort")]),
  said: document.getElementById("count").textContent, address: location.hash,
});
const head = (key) => document.querySelector(`#sources th[data-key=${key}] button`);
const type = (text) => { const box = document.getElementById("filter"); box.value = text; box.dispatchEvent(new Event("input")); };
const group = (name) => document.querySelector(`#sources tr[data-group-name="${name}"] button`);
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    made = make_workdir(tmp_path_factory.mktemp("hundreds"), sources=hundreds_of_sources(512))
    write_report(made)
    return made


def browse(page: Path, script: str, directory: Path, *, address: str = "") -> Any:
    """Open a page, run a script in it and return the value that it leaves in `found`."""
    assert CHROMIUM is not None
    probed, leave = directory / "probed.html", "document.body.dataset.found = JSON.stringify(found);"
    probed.write_text(page.read_text().replace("</body>", f"<script>{LOOK}{script}{leave}</script></body>"))
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={directory / 'profile'}", probed.as_uri() + address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None
    return json.loads(html.unescape(found[1]))


def test_plots_have_their_size_and_groups_are_folded_at_first(workdir: Workdir, tmp_path: Path) -> None:
    script = """const found = { ...look(), plots: [...document.querySelectorAll(".plot svg")].map((svg) => {
      const box = svg.getBoundingClientRect(); return [box.width, box.height]; }) };"""
    found = browse(workdir.report, script, tmp_path)
    assert len(found["plots"]) == 6 and all(width > 600 and height > 150 for width, height in found["plots"])
    assert found["sources"] == [] and len(found["groups"]) == 8 and found["sorted"] == [["weight", "descending"]]


def test_a_view_is_linked_by_its_address(workdir: Workdir, tmp_path: Path) -> None:
    found = browse(workdir.report, "const found = look();", tmp_path, address="#sort=tokens&filter=code_0&groups=no")
    given = {source.name: source.num_tokens for source in load_manifest(workdir.manifest.root).sources}
    expected = sorted((name for name in given if "code_0" in name), key=lambda name: -given[name])
    assert sorted(found["sources"]) == sorted(expected)
    assert [given[name] for name in found["sources"]] == [given[name] for name in expected]
    assert found["sorted"] == [["tokens", "descending"]] and found["said"] == f"{len(expected)} of 512"


def test_clicks_sort_filter_and_unfold(workdir: Workdir, tmp_path: Path) -> None:
    script = """const found = {};
      group("web").click(); found.unfolded = { ...look(), expanded: group("web").getAttribute("aria-expanded") };
      group("web").click();
      type("CHESS"); found.one = look();
      type("nothing like it"); found.none = look();
      type(""); document.getElementById("grouped").click(); found.flat = look();
      document.getElementById("more").click(); head("name").click(); found.all = look();
      head("weight").click(); head("weight").click(); found.rising = look();"""
    found = browse(workdir.report, script, tmp_path)
    weights = load_mixture(workdir.search.mixture).weights
    falling = sorted(weights, key=lambda name: -weights[name])
    assert found["unfolded"]["sources"] == [name for name in falling if name.startswith("web_")]
    assert found["unfolded"]["expanded"] == "true"
    assert (found["one"]["sources"], found["one"]["groups"], found["one"]["said"]) == (["chess"], ["in no group"], "1 of 512")
    assert (found["none"]["sources"], found["none"]["groups"]) == ([], []) and "none of 512" in found["none"]["said"]
    assert found["flat"]["sources"] == falling[:40] and found["flat"]["groups"] == [] and found["flat"]["address"] == "#groups=no"
    assert found["all"]["sources"] == sorted(weights) and found["all"]["sorted"] == [["name", "ascending"]]
    assert found["rising"]["sources"] == falling[::-1]
    assert found["rising"]["address"] == "#sort=weight&order=up&groups=no&all=yes"


def test_groups_are_sorted_by_their_sums_and_sources_within_them(workdir: Workdir, tmp_path: Path) -> None:
    script = """head("unique").click(); document.getElementById("unfold").click(); const found = { sums: look() };
      head("interval").click(); found.widths = look();"""
    found = browse(workdir.report, script, tmp_path)
    mixture, manifest = load_mixture(workdir.search.mixture), load_manifest(workdir.manifest.root)
    unique = {source.name: source.num_tokens / source.epochs for source in manifest.sources}
    totals: dict[str, float] = {}
    for name, size in unique.items():
        kind = name.split("_")[0] if "_" in name else "in no group"
        totals[kind] = totals.get(kind, 0) + size
    assert found["sums"]["groups"] == sorted(totals, key=lambda kind: -totals[kind]) and len(found["sums"]["sources"]) == 512
    width = {name: high - low for name, (low, high) in mixture.certainty.interval.items()}
    first = found["widths"]["sources"][0]
    assert width[first] == max(width.values())
    assert found["widths"]["groups"][0] == first.split("_")[0]
