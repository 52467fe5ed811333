"""Search on a sample, ship the whole: a plan says what is estimated, and after `preprocess --all` the same commands are exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from installed_command import fastmix, read_recipe, write_corpus, write_recipe

from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.estimated import load_plan
from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.shards.catalog import load_catalog
from fastmix_data.workdir import Workdir


@pytest.fixture(scope="module")
def sampled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a sample, with exports asked for; nobody changes it."""
    folder = tmp_path_factory.mktemp("sampled")
    write_corpus(folder)
    recipe = read_recipe(folder)
    recipe["shards"] |= {"sample": "30K"}
    recipe["training"] |= {"token_budget": "16K"}
    recipe["search"] |= {"method": "paper"}  # without trials, which are about other things
    recipe |= {"exports": ["webdataset"], "emit": {"token_budget": "200K", "max_epochs": 4}}
    write_recipe(folder, recipe)
    printed = fastmix("run", "recipe.yaml", "--workers", 1, cwd=folder)
    (folder / "printed.txt").write_text(printed.stdout + printed.stderr)
    return folder


def test_every_command_says_that_figures_are_estimated_and_what_makes_them_exact(sampled_run: Path) -> None:
    said = (sampled_run / "printed.txt").read_text()
    assert "a sample: estimated training tokens of the whole" in said and "exports: webdataset wait for the manifest" in said
    assert "estimated from a sample, times each source will be read" in said and "fastmix preprocess RECIPE --all" in said
    for arguments in (
        ("inspect", "run"),
        ("inspect", "run/catalog.parquet"),
        ("inspect", "run/manifest"),
        ("emit", "recipe.yaml"),
    ):
        shown = fastmix(*arguments, cwd=sampled_run).output
        assert "estimate" in shown and "--all" in shown, arguments
    page = (sampled_run / "run" / "report.html").read_text()
    assert "Estimated from a sample: tokens and epochs of prose, code and noise" in page and "training tokens, estimated" in page
    assert "the plan of a manifest" in fastmix("verify", "run", cwd=sampled_run).output


def test_the_plan_has_caps_and_epochs_by_estimated_sizes_and_nothing_reads_it_as_a_manifest(sampled_run: Path) -> None:
    paths = Workdir(sampled_run / "run")
    plan, catalog = load_plan(paths.manifest.plan), load_catalog(paths.catalog)
    assert not paths.manifest.manifest.exists() and sum(source.num_tokens for source in plan.sources) == 200_000
    for source, size in zip(plan.sources, catalog.available_K().tolist(), strict=True):
        assert source.estimated and source.unique_tokens == size > 1.5 * catalog.num_tokens(source.name)
        assert source.epochs_low <= source.epochs == source.num_tokens / size <= source.epochs_high
    remedy = "fastmix preprocess RECIPE --all"
    assert remedy in fastmix("export", "run/manifest", "--to", "webdataset", cwd=sampled_run, code=2).output
    for path in (paths.manifest.root, paths.manifest.plan, paths.manifest.manifest):
        with pytest.raises(Exception, match=remedy):
            ManifestDataset(path, sequence_length=32)
    beyond = fastmix("emit", "recipe.yaml", "--set", "emit.token_budget=9M", cwd=sampled_run, code=2)
    assert "beyond the epoch caps" in beyond.output
    other = fastmix("emit", "recipe.yaml", "--set", "emit.token_budget=150K", cwd=sampled_run, code=2)
    assert "made with another emit section; give --replace" in other.output


def test_after_all_the_search_stands_and_the_same_run_is_exact(sampled_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sampled_run, folder)
    paths = Workdir(folder / "run")
    plan, mixture = load_plan(paths.manifest.plan), paths.search.mixture.read_bytes()
    shown = fastmix("preprocess", "recipe.yaml", "--all", "--workers", 1, cwd=folder)
    assert "3 of 3 lie within the 90% interval" in shown.output
    printed = json.loads(fastmix("run", "recipe.yaml", "--workers", 1, "--json", cwd=folder).stdout)
    assert paths.search.mixture.read_bytes() == mixture and printed["plan"] is None
    manifest = load_manifest(paths.manifest.root)
    assert not paths.manifest.plan.exists() and abs(manifest.num_tokens - 200_000) <= 256
    for planned, source in zip(plan.sources, manifest.sources, strict=True):
        assert planned.weight == source.weight
        assert planned.unique_low <= source.unique_tokens <= planned.unique_high
    assert (folder / "run" / "export-webdataset").is_dir()
    going_on = ("emit", "recipe.yaml", "--after", 1024, "--of", paths.manifest.manifest)
    assert "holds a sample, and no run can go on" in fastmix(*going_on, cwd=sampled_run, code=2).output
    assert "learned on other data" not in (folder / "run" / "report.html").read_text()
    assert "another catalog" not in fastmix("verify", "run", cwd=folder).output
