"""The flow as a user drives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset
import yaml
from installed_command import FASTMIX, fastmix

from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.shards.catalog import load_catalog


def test_run_leaves_every_artefact_and_a_token_exact_manifest(finished_run: Path) -> None:
    run = finished_run / "run"
    for artefact in (
        "catalog.parquet",
        "tokenizer/tokenizer.json",
        "search/mixture.json",
        "search/trajectory.parquet",
        "report.html",
    ):
        assert (run / artefact).is_file(), artefact
    manifest = load_manifest(run / "manifest")
    block = load_catalog(run / "catalog.parquet").info.block_tokens
    assert abs(manifest.num_tokens - 30_000) <= block
    labels = sum(int((item["labels"] != -100).sum()) for item in ManifestDataset(run / "manifest", sequence_length=64))
    assert labels == sum(part.num_labels * part.repeats for part in manifest.parts)
    assert not list(run.rglob("*.partial"))


def test_the_target_wins_and_noise_loses(finished_run: Path) -> None:
    weights = json.loads((finished_run / "run/search/mixture.json").read_text())["weights"]
    assert weights["prose"] > 1 / 3 > weights["noise"]


def test_a_second_run_does_nothing_and_json_is_one_object(finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished_run / "run").rglob("*.tar")}
    again = fastmix("run", "recipe.yaml", "--json", cwd=finished_run)
    result = json.loads(again.stdout)
    assert result["num_tokens"] > 0 and set(result["mixture"]["weights"]) == {"prose", "code", "noise"}
    assert {path: path.stat().st_mtime_ns for path in (finished_run / "run").rglob("*.tar")} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("preprocess", "recipe.yaml"),
        ("search", "recipe.yaml"),
        ("emit", "recipe.yaml"),
        ("report", "recipe.yaml"),
        ("verify", "run"),
        ("inspect", "run/catalog.parquet"),
        ("inspect", "run/search/mixture.json"),
        ("inspect", "run/manifest"),
        ("recipe", "recipe.yaml"),
        ("recipe", "--schema"),
    ],
    ids=" ".join,
)
def test_every_command_prints_one_json_object(finished_run: Path, arguments: tuple[str, ...]) -> None:
    assert isinstance(json.loads(fastmix(*arguments, "--json", cwd=finished_run).stdout), dict)


def test_inspect_shows_the_text_of_a_block(finished_run: Path) -> None:
    shard = next((finished_run / "run/shards/prose").glob("train-*.tar"))
    text = fastmix("inspect", shard, "--block", 1, cwd=finished_run).stdout
    assert "house" in text or "river" in text
    assert "prose.jsonl" in text and "line " in text


def test_webdataset_reads_the_export(finished_run: Path, tmp_path: Path) -> None:
    fastmix("export", "run/manifest", "--to", "webdataset", "--out", tmp_path / "out", cwd=finished_run)
    urls = (tmp_path / "out/shards.txt").read_text().split()
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    manifest = load_manifest(finished_run / "run/manifest")
    assert len(samples) == sum(part.num_blocks * part.repeats for part in manifest.parts)
    assert all(sample["tokens.npy"].shape == (257,) for sample in samples)


def test_a_mixture_of_ones_own_is_emitted(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mixture.json").write_text(json.dumps({"weights": {"prose": 0.2, "code": 0.5, "noise": 0.3}}))
    recipe = yaml.safe_load((finished_run / "recipe.yaml").read_text())
    (finished_run / "other.yaml").write_text(yaml.safe_dump(recipe))
    refused = fastmix("emit", "other.yaml", "--mixture", tmp_path / "mixture.json", cwd=finished_run, code=2)
    assert "--replace" in refused.stderr and refused.stderr.count("\n") == 1


def test_init_writes_a_recipe_that_loads(corpus: Path) -> None:
    (corpus / "recipe.yaml").unlink()
    fastmix("init", ".", cwd=corpus)
    sources = json.loads(fastmix("recipe", "recipe.yaml", "--json", cwd=corpus).stdout)["sources"]
    assert set(sources) == {"prose", "code", "noise"}


def test_help_imports_nothing_heavy() -> None:
    code = "import pipelines.cli, sys; print([m for m in ('torch', 'pyarrow', 'dask', 'pydantic', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("search.sed=1", "search.sed: unknown key; did you mean 'seed'?"),
        ("sources.prose.files=prsoe.jsonl", "prose.jsonl"),
        ("sources.prose.text=body", "the keys there are text"),
        ("target.sources.poetry=1", "there is no source 'poetry'; the sources are prose, code, noise"),
        ("search.sequence_length=100", "does not divide shards.block_tokens 256"),
        ("search.micro_batch=3", "search.micro_batch 3 does not divide"),
        ("proxy.config.hiden_size=3", "did you mean 'hidden_size'"),
        ("sources.a/b={files: prose.jsonl}", "'a/b' is not a usable name"),
        ("emit.token_budget=many", "write it like 2M or 100B"),
    ],
    ids=lambda value: value.split("=")[0],
)
def test_mistakes_are_one_line_and_leave_nothing(corpus: Path, change: str, expected: str) -> None:
    refused = fastmix("run", "recipe.yaml", "--set", change, cwd=corpus, code=2)
    assert expected in refused.stderr and refused.stderr.count("\n") == 1 and refused.stdout == ""
    assert not (corpus / "run").exists()


def test_a_source_named_twice_is_refused(corpus: Path) -> None:
    text = (corpus / "recipe.yaml").read_text().replace("  code:\n", "  prose:\n")
    (corpus / "recipe.yaml").write_text(text)
    assert "'prose' is given twice" in fastmix("run", "recipe.yaml", cwd=corpus, code=2).stderr


def test_a_budget_beyond_the_caps_is_refused_before_the_search(corpus: Path) -> None:
    refused = fastmix("run", "recipe.yaml", "--workers", 1, "--set", "emit.token_budget=900M", cwd=corpus, code=2)
    assert "beyond the epoch caps" in refused.stderr and "raise emit.max_epochs" in refused.stderr
    assert not (corpus / "run/search").exists()


def test_a_missing_recipe_names_the_nearest(corpus: Path) -> None:
    refused = fastmix("run", "recipie.yaml", "--json", cwd=corpus, code=2)
    assert "did you mean recipe.yaml?" in refused.stderr
    assert "did you mean" in json.loads(refused.stdout)["error"]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(corpus: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        refused = fastmix("run", "recipe.yaml", "--workers", 1, "--set", f"workdir={disk}/run", cwd=corpus, code=2)
        assert "no space left on the disk" in refused.stderr and "Traceback" not in refused.stderr
        assert not list(disk.rglob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        fastmix("preprocess", "recipe.yaml", "--workers", 1, "--set", f"workdir={disk}/run", cwd=corpus)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_debug_shows_the_traceback(corpus: Path) -> None:
    assert "Traceback" in fastmix("run", "nothing.yaml", "--debug", cwd=corpus, code=2).stderr


def test_deepspeed_launcher_starts_the_same_module(finished_run: Path) -> None:
    launcher = Path(FASTMIX).with_name("deepspeed")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{launcher.parent}:{os.environ['PATH']}",
    }
    command = [
        launcher,
        "--num_accelerators",
        "1",
        "--module",
        "train.search",
        "recipe.yaml",
        "--set",
        "search.seed=5",
        "--replace",
    ]
    recipe = finished_run / "launched"
    recipe.mkdir()
    (recipe / "run").mkdir()
    for name in ("shards", "catalog.parquet", "tokenizer"):
        (recipe / "run" / name).symlink_to(finished_run / "run" / name)
    (recipe / "recipe.yaml").write_text((finished_run / "recipe.yaml").read_text())
    finished = subprocess.run(list(map(str, command)), cwd=recipe, capture_output=True, text=True, timeout=300, env=environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert json.loads((recipe / "run/search/mixture.json").read_text())["seed"] == 5
