"""The flow as a user drives it.

Only what needs a process of its own gets one: what is printed beside the JSON, the launcher, and how much is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from installed_command import FASTMIX, fastmix, installed_fastmix, read_recipe, run_process, write_recipe
from small_disk import small_disk

from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.results.mixture import load_mixture
from fastmix_data.shards.catalog import load_catalog
from fastmix_data.workdir import SearchFolder, Workdir


def times_of_writing(workdir: Path) -> dict[Path, int]:
    """Of every file but locks and the report, which is always written."""
    files = [path for path in workdir.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path: path.stat().st_mtime_ns for path in files if path.name != "report.html"}


def test_run_leaves_every_artefact_and_a_token_exact_manifest(finished_run: Path) -> None:
    paths = Workdir(finished_run / "run")
    for artefact in (paths.catalog, paths.tokenizer, paths.search.mixture, paths.search.trajectory, paths.report):
        assert artefact.is_file(), artefact
    manifest = load_manifest(paths.manifest.root)
    block = load_catalog(paths.catalog).info.block_tokens
    assert abs(manifest.num_tokens - 30_000) <= block
    labels = sum(int((item["labels"] != -100).sum()) for item in ManifestDataset(paths.manifest.root, sequence_length=64))
    assert labels == sum(part.num_labels * part.repeats for part in manifest.parts)
    assert not list(paths.root.rglob("*.partial"))


def test_the_target_wins_and_noise_loses(finished_run: Path) -> None:
    weights = load_mixture(Workdir(finished_run / "run").search.mixture).weights
    assert weights["prose"] > 1 / 3 > weights["noise"]


def test_trials_decide_and_what_they_say_is_shown(finished_run: Path) -> None:
    trials = load_mixture(Workdir(finished_run / "run").search.mixture).trials
    assert trials is not None and trials.num_trials >= 2 * len(trials.mixtures) and trials.ahead["proportional"][0] > 0
    shown = fastmix("search", "recipe.yaml", cwd=finished_run).stdout
    assert "trials chose " in shown and "proportional shares in " in shown
    page = (finished_run / "run" / "report.html").read_text()
    assert f"by {trials.num_trials} short trials" in page and "What trials say" in page and "at 30.0 K tokens" in page


def test_a_second_run_does_nothing_and_says_the_same(finished_run: Path) -> None:
    before = times_of_writing(finished_run / "run")
    printed = json.loads((finished_run / "printed.json").read_text())
    assert printed["num_tokens"] > 0 and set(printed["mixture"]["weights"]) == {"prose", "code", "noise"}
    assert json.loads(fastmix("run", "recipe.yaml", "--json", cwd=finished_run).stdout) == printed
    shown = fastmix("run", "recipe.yaml", cwd=finished_run)
    assert shown.stderr.count("nothing to do") == 3 and f"manifest: {printed['num_tokens']:,} tokens" in shown.stdout
    assert times_of_writing(finished_run / "run") == before


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
    printed = fastmix(*arguments, "--json", cwd=finished_run)
    assert isinstance(json.loads(printed.stdout), dict) and printed.stderr == ""


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


def test_a_run_ends_in_the_formats_of_its_recipe_and_nothing_else_is_done_again(copied_run: Path) -> None:
    before = times_of_writing(copied_run / "run")
    recipe = read_recipe(copied_run)
    write_recipe(
        copied_run, recipe | {"exports": ["webdataset", {"to": "huggingface", "dir": "for-hf", "max_file_bytes": "64KiB"}]}
    )
    (copied_run / "for-hf").mkdir()
    (copied_run / "for-hf" / "thesis.tex").write_text("mine")
    refused = fastmix("run", "recipe.yaml", cwd=copied_run, code=2)
    assert "holds files that are no export" in refused.stderr and "nothing to do" not in refused.stderr
    (copied_run / "for-hf" / "thesis.tex").unlink()
    shown = fastmix("run", "recipe.yaml", cwd=copied_run)
    assert shown.stderr.count("nothing to do") == 3 and shown.stderr.count("give the trainer") == 2
    assert f"give webdataset {copied_run / 'run/export-webdataset/shards.txt'}" in shown.stdout
    assert (copied_run / "for-hf/data/prose/train-00001-of-00002.parquet").is_file()
    after = times_of_writing(copied_run / "run")
    assert {path: after[path] for path in before} == before
    printed = json.loads(fastmix("run", "recipe.yaml", "--json", cwd=copied_run).stdout)
    assert [given["format"] for given in printed["exports"]] == ["webdataset", "huggingface"]
    assert times_of_writing(copied_run / "run") == after


def test_a_fit_to_ones_own_swarm_keeps_to_the_recipe_and_is_emitted(copied_run: Path) -> None:
    """Sources in another order than the catalog's: bounds and epoch caps still meet the right ones."""
    rng = np.random.default_rng(0)
    weights_NK = rng.dirichlet(np.ones(3), 24)
    rows = [(f"r{number}", *weights_K) for number, weights_K in enumerate(weights_NK.tolist())]
    losses = [(name, 3 - noise - 0.5 * prose) for name, noise, prose, _ in rows]
    for name, header, lines in (("ratios", "run,noise,prose,code", rows), ("metrics", "run,loss", losses)):
        (copied_run / f"{name}.csv").write_text("\n".join([header, *(",".join(map(str, line)) for line in lines)]))
    recipe = read_recipe(copied_run)
    write_recipe(copied_run, recipe | {"search": {**recipe["search"], "constraints": {"ceiling": {"noise": 0.25}}}})
    fastmix("fit", "ratios.csv", "metrics.csv", "--target", "loss", "--recipe", "recipe.yaml", cwd=copied_run)
    mixture = load_mixture(SearchFolder(copied_run).mixture)
    assert mixture.weights["noise"] == pytest.approx(0.25) and mixture.binding["noise"] == "ceiling"
    assert mixture.weights["prose"] > mixture.weights["code"]
    fastmix("emit", "recipe.yaml", "--mixture", "mixture.json", "--replace", cwd=copied_run)
    shares = {source.name: source.weight for source in load_manifest(Workdir(copied_run / "run").manifest.root).sources}
    assert shares == pytest.approx(mixture.weights)
    both = ("--recipe", "recipe.yaml", "--cap", "prose=0.3")
    refused = fastmix("fit", "ratios.csv", "metrics.csv", "--target", "loss", *both, cwd=copied_run, code=2)
    assert "search.constraints.ceiling" in refused.output


def test_a_mixture_of_ones_own_is_emitted(copied_run: Path) -> None:
    wanted = {"prose": 0.2, "code": 0.5, "noise": 0.3}
    (copied_run / "own.json").write_text(json.dumps({"weights": wanted}))
    refused = fastmix("emit", "recipe.yaml", "--mixture", "own.json", cwd=copied_run, code=2)
    assert "--replace" in refused.stderr and refused.stderr.count("\n") == 1
    fastmix("emit", "recipe.yaml", "--mixture", "own.json", "--replace", cwd=copied_run)
    assert {source.name: source.weight for source in load_manifest(copied_run / "run/manifest").sources} == wanted


def test_init_writes_a_recipe_that_loads(corpus: Path) -> None:
    (corpus / "recipe.yaml").unlink()
    fastmix("init", ".", cwd=corpus)
    sources = json.loads(fastmix("recipe", "recipe.yaml", "--json", cwd=corpus).stdout)["sources"]
    assert set(sources) == {"prose", "code", "noise"}


@pytest.mark.parametrize("command", [[FASTMIX], [sys.executable, "-m", "train.search"]], ids=["fastmix", "train.search"])
def test_help_imports_nothing_heavy(command: list[object], tmp_path: Path) -> None:
    finished = run_process([*command, "--help"], cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert "Usage: fastmix" in finished.stdout
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "pipelines" in imported
    assert imported.isdisjoint({"torch", "pyarrow", "dask", "distributed", "pydantic", "numpy", "transformers", "deepspeed"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("search.trail_fraction=0.1", "search.trail_fraction: unknown key; did you mean 'trial_fraction'?"),
        ("search.prior_strength=0", "search.prior_strength: is gone, trials decide now; leave it out"),
        ("search.initial_weights=bigram", "should be 'count', 'uniform' or 'proportional'; got 'bigram'"),
        ("training.sed=1", "training.sed: unknown key; did you mean 'seed'?"),
        ("sources.prose.files=prsoe.jsonl", "prose.jsonl"),
        ("sources.prose.text=body", "the keys there are text"),
        ("target.sources.poetry=1", "there is no source 'poetry'; the sources are prose, code, noise"),
        ("training.sequence_length=100", "does not divide shards.block_tokens 256"),
        ("shards.example_tokens=48", "shards.example_tokens 48 does not divide shards.block_tokens 256"),
        ("training.micro_batch=3", "training.micro_batch: 3 does not divide"),
        ("proxy.config.hiden_size=3", "did you mean 'hidden_size'"),
        ("proxy.config={model_type: t5}", "t5 is no causal language model"),
        (
            "proxy.config={model_type: bert, hidden_size: 32, num_attention_heads: 4}",
            "BertLMHeadModel is no causal language model",
        ),
        ("proxy.config.num_attention_heads=3", "not a multiple of the number of attention heads (3)"),
        ("proxy.config={model_type: mixtral, hidden_size: 32, num_hidden_layers: 1}", "use search.hypergradient: head"),
        ("sources.a/b={files: prose.jsonl}", "'a/b' is not a usable name"),
        ("emit.token_budget=many", "write it like 2M or 100B"),
        ("exports=[webdatset]", "exports.0.to: 'webdatset': there is no such format, did you mean webdataset?"),
        ("exports=[{to: webdataset, fiels: copy}]", "exports.0.fiels: unknown key; did you mean 'files'?"),
        ("exports=[webdataset, webdataset]", "two are written to run/export-webdataset; give one of them another dir"),
    ],
    ids=lambda value: value.split("=")[0],
)
def test_mistakes_are_one_line_and_leave_nothing(corpus: Path, change: str, expected: str) -> None:
    refused = fastmix("run", "recipe.yaml", "--set", change, cwd=corpus, code=2)
    assert expected in refused.stderr and refused.stderr.count("\n") == 1 and refused.stdout == ""
    assert not (corpus / "run").exists()


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("training.document_attention=true", "leave training.document_attention out"),
        ("sources.prose={files: prose.jsonl, prompt: text, completion: text}", "for example model_type llama"),
    ],
)
def test_a_proxy_that_lets_packed_examples_see_each_other_is_refused_before_any_work(
    corpus: Path, change: str, remedy: str
) -> None:
    bloom = "proxy.config={model_type: bloom, hidden_size: 32, n_layer: 1, n_head: 2}"
    refused = fastmix("run", "recipe.yaml", "--set", bloom, "--set", change, cwd=corpus, code=2)
    assert "BloomForCausalLM lets examples that share a sequence see each other" in refused.stderr
    assert remedy in refused.stderr and refused.stderr.count("\n") == 1 and not (corpus / "run").exists()


def test_a_recipe_of_version_0_1_is_refused_with_the_place_of_each_key_that_moved(corpus: Path) -> None:
    recipe = read_recipe(corpus)
    for key in TrainingSection.model_fields:
        section = "deepspeed" if key == "precision" else "search"
        old = {**recipe, "training": None, section: {**recipe.get(section, {}), key: recipe["training"].get(key, 1)}}
        write_recipe(corpus, {name: content for name, content in old.items() if content is not None})
        refused = fastmix("run", "recipe.yaml", cwd=corpus, code=2)
        assert refused.stderr == f"error: recipe.yaml: {section}.{key}: has moved; write it as training.{key}\n"
    assert not (corpus / "run").exists()


@pytest.mark.parametrize(
    ("command", "lacking", "remedy"),
    [
        ("run", "training", "add training: {token_budget: 2M}"),
        ("run", "target", "add target: {sources: {NAME: 1}}"),
        ("run", "emit", "add emit: {token_budget: 100M}"),
        ("search", "training", "add training: {token_budget: 2M}"),
        ("search", "target", "add target: {sources: {NAME: 1}}"),
        ("compare", "training", "add training: {token_budget: 2M}"),
        ("emit", "emit", "add emit: {token_budget: 100M}"),
    ],
)
def test_a_section_that_a_command_needs_is_asked_for_before_any_work(
    corpus: Path, command: str, lacking: str, remedy: str
) -> None:
    recipe = read_recipe(corpus)
    del recipe[lacking]
    write_recipe(corpus, recipe)
    refused = fastmix(command, "recipe.yaml", cwd=corpus, code=2)
    assert refused.stderr.startswith(f"error: {lacking}: ") and remedy in refused.stderr and refused.stderr.count("\n") == 1
    assert not (corpus / "run").exists()


def test_preprocess_needs_a_tokenizer_and_sources_only(finished_run: Path, corpus: Path) -> None:
    recipe = read_recipe(corpus)
    kept = {name: recipe[name] for name in ("workdir", "tokenizer", "sources", "shards")}
    write_recipe(corpus, kept)
    fastmix("preprocess", "recipe.yaml", "--workers", 1, cwd=corpus)
    made, whole = (load_catalog(folder / "run/catalog.parquet") for folder in (corpus, finished_run))
    assert made.fingerprint == whole.fingerprint
    write_recipe(corpus, {name: kept[name] for name in ("tokenizer", "sources")})
    fastmix("preprocess", "recipe.yaml", "--workers", 1, "--replace", cwd=corpus)
    assert load_catalog(corpus / "run/catalog.parquet").sources == made.sources


def test_commands_do_not_ask_for_sections_that_they_do_not_need(copied_run: Path) -> None:
    recipe, paths = read_recipe(copied_run), Workdir(copied_run / "run")
    before = paths.manifest.manifest.read_bytes(), paths.report.read_bytes()
    shutil.rmtree(paths.manifest.root)
    write_recipe(copied_run, {name: recipe[name] for name in ("workdir", "tokenizer", "sources", "shards", "emit")})
    fastmix("emit", "recipe.yaml", cwd=copied_run)
    paths.report.unlink()
    write_recipe(copied_run, {name: recipe[name] for name in ("workdir", "tokenizer", "sources")})
    fastmix("report", "recipe.yaml", cwd=copied_run)
    assert (paths.manifest.manifest.read_bytes(), paths.report.read_bytes()) == before
    write_recipe(copied_run, {name: content for name, content in recipe.items() if name != "emit"})
    small = ("training.token_budget=20K", "search.trial_fraction=0")
    fastmix("search", "recipe.yaml", *(f"--set={key}" for key in small), "--replace", cwd=copied_run)
    assert load_mixture(paths.search.mixture).search.num_steps == 156


def test_a_source_named_twice_is_refused(corpus: Path) -> None:
    text = (corpus / "recipe.yaml").read_text().replace("  code:\n", "  prose:\n")
    (corpus / "recipe.yaml").write_text(text)
    assert "'prose' is given twice" in fastmix("run", "recipe.yaml", cwd=corpus, code=2).stderr


def test_a_budget_beyond_the_caps_is_refused_before_the_search(corpus: Path) -> None:
    refused = fastmix("run", "recipe.yaml", "--workers", 1, "--set", "emit.token_budget=900M", cwd=corpus, code=2)
    assert "beyond the epoch caps" in refused.stderr and "raise emit.max_epochs" in refused.stderr
    assert not (corpus / "run/search").exists()


def test_a_missing_recipe_names_the_nearest(corpus: Path) -> None:
    refused = installed_fastmix("run", "recipie.yaml", "--json", cwd=corpus, code=2)
    assert "did you mean recipe.yaml?" in refused.stderr and refused.stderr.count("\n") == 1
    assert "did you mean" in json.loads(refused.stdout)["error"]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(corpus: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, size="256k") as make_room:
        refused = fastmix("run", "recipe.yaml", "--workers", 1, "--set", f"workdir={disk}/run", cwd=corpus, code=2)
        assert "no space left on the disk" in refused.stderr and "Traceback" not in refused.stderr
        assert not list(disk.rglob("*.partial"))
        make_room()
        fastmix("preprocess", "recipe.yaml", "--workers", 1, "--set", f"workdir={disk}/run", cwd=corpus)


def test_debug_shows_the_traceback(corpus: Path) -> None:
    assert "Traceback" in fastmix("run", "nothing.yaml", "--debug", cwd=corpus, code=2).stderr


def test_deepspeed_launcher_starts_the_same_command(copied_run: Path) -> None:
    launcher = Path(FASTMIX).with_name("deepspeed")
    path = f"{launcher.parent}:{os.environ['PATH']}"
    changes = ("training.seed=5", "training.token_budget=20K", "search.trial_fraction=0")
    options = [part for change in changes for part in ("--set", change)]
    command = [launcher, "--num_accelerators", 1, "--module", "train.search", "recipe.yaml", *options, "--replace"]
    run_process(command, cwd=copied_run, DS_ACCELERATOR="cpu", PATH=path)
    searched = load_mixture(Workdir(copied_run / "run").search.mixture).search
    assert (searched.seed, searched.world_size) == (5, 1)
