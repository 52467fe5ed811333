"""A sample of every source is part of the whole, says how large the whole is, and becomes the whole without a trace."""

import dataclasses
import json
import shutil

import datasets
import pytest
from small_corpora import bytes_of, documents_of, json_lines, run, texts, write_every_format
from written_tokens import megatron

from fastmix_data.errors import InputError, MismatchError
from fastmix_data.machine import Workers
from fastmix_data.recipe.load import load_recipe
from fastmix_data.shards.catalog import load_catalog
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess

SAMPLE = "shards.sample=220k"


def write_corpus(folder):
    """Every format, a dataset, an import and a source of pairs; of `books`, some documents stand in `code` and twice in `books` too."""
    recipe = json.loads(write_every_format(folder).read_text())
    books = texts("books", 300)
    (folder / "books.jsonl").write_bytes(json_lines([*books, *books[:40], *texts("more books", 200)]))
    (folder / "copied.jsonl").write_bytes(json_lines(books[100:250]))
    datasets.Dataset.from_dict({"text": texts("saved", 250)}).save_to_disk(folder / "saved")
    pairs = [{"q": q, "a": a} for q, a in zip(texts("p", 1200, 8), texts("r", 1200, 8), strict=True)]
    (folder / "more-pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    recipe["tokenizer"] = {"bytes": True}
    recipe["sources"] |= {
        "code": {"files": ["code.jsonl.zst", "copied.jsonl"], "valid_files": "code-valid.jsonl.gz"},
        "saved": {"dataset": "saved"},
        "pairs": {"files": "more-pairs.jsonl", "prompt": "q", "completion": "a"},
        "there": {"tokens": megatron(folder, "there", [[*list(text.encode()), 256] for text in texts("there", 30)])},
    }
    recipe["shards"] |= {"max_partition_bytes": 200_000, "max_shard_bytes": 400_000}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")


def recipe_of(folder, workdir, *changes):
    return load_recipe(folder / "recipe.yaml", [f"workdir={workdir}", *changes])


def make_whole(recipe):
    return preprocess(plan_preprocess(recipe), workers=Workers(quiet=True), is_whole=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Folder with the workdirs `whole` and `sample`."""
    folder = tmp_path_factory.mktemp("sampled")
    write_corpus(folder)
    run(recipe_of(folder, "whole"))
    run(recipe_of(folder, "sample", SAMPLE))
    return folder


@pytest.fixture
def sampled(corpus, tmp_path):
    """A copy of the corpus to change, with its recipe and its workdir over a sample."""
    shutil.copytree(corpus, tmp_path / "copy")
    return tmp_path / "copy", recipe_of(tmp_path / "copy", "sample", SAMPLE)


def test_the_sample_is_part_of_the_whole_by_hash_with_copies_together_and_what_is_small_is_whole(corpus):
    whole, sample = (documents_of(corpus / name) for name in ("whole", "sample"))
    catalog, exact = (load_catalog(corpus / name / "catalog.parquet") for name in ("sample", "whole"))
    place = ("source", "split", "file", "locator", "text_hash")
    in_whole, in_sample = ({tuple(row[key] for key in place) for row in rows} for rows in (whole, sample))
    assert in_sample < in_whole
    thinned = catalog.info.sample.sources
    assert set(thinned) == {"books", "code", "tables", "saved", "pairs"}
    # Of every document that is in, all copies in its source are.
    for name in (*catalog.sources, "answers"):
        mine = {row[4] for row in in_sample if row[:2] == (name, "train")}
        there = {row for row in in_whole if row[:2] == (name, "train") and row[4] in mine}
        assert there == {row for row in in_sample if row[:2] == (name, "train")}
    assert sum(row["source"] == "books" for row in sample) > len({row["text_hash"] for row in sample if row["source"] == "books"})
    # Held-out files, a target with files, imports, and sources that are smaller than their share.
    for name, split in (("code", "valid"), ("answers", "valid"), ("there", "train"), ("there", "valid"), ("notes", "train")):
        assert [row.sha256 for row in catalog.shards(name, split)] == [row.sha256 for row in exact.shards(name, split)] != []
    # What is held out of a target is whole where it is small beside the share; of the others it is thinned alike.
    assert catalog.num_tokens("books", "valid") == exact.num_tokens("books", "valid")
    assert 0 < catalog.num_tokens("tables", "valid") < exact.num_tokens("tables", "valid")


def test_the_sample_is_about_as_large_as_asked_for_and_its_intervals_hold_the_whole(corpus):
    catalog, exact = (load_catalog(corpus / name / "catalog.parquet") for name in ("sample", "whole"))
    made = sum(catalog.num_tokens(name) for name in catalog.sources if name != "there")
    assert 0.75 * 220_000 < made < 1.25 * 220_000
    for name, estimate in catalog.info.sample.sources.items():
        assert abs(estimate.num_tokens / exact.num_tokens(name) - 1) < 0.05, name
        assert estimate.low <= exact.num_tokens(name) <= estimate.high, name
    sizes = dict(zip(catalog.sources, catalog.available_K().tolist(), strict=True))
    assert sizes["there"] == exact.num_tokens("there") and sizes["notes"] == exact.num_tokens("notes")


def test_two_workers_and_a_run_that_goes_on_give_the_bytes_of_one(corpus):
    two = recipe_of(corpus, "two", SAMPLE)
    run(two, num_workers=2)
    assert bytes_of(two.paths.root) == bytes_of(corpus / "sample")
    two.paths.catalog.unlink()
    two.paths.receipt_of("tables-both-000000").unlink()
    assert run(two).did_work
    assert bytes_of(two.paths.root) == bytes_of(corpus / "sample")


def test_all_keeps_what_is_whole_and_leaves_what_a_run_without_a_sample_does(sampled):
    folder, recipe = sampled
    paths = recipe.paths
    kept = {path: path.stat().st_mtime_ns for path in (paths.shards / "notes").iterdir()}
    searched = load_catalog(paths.catalog).fingerprint
    result = make_whole(recipe)
    assert result.did_work and any("sizes are exact now; 5 of 5 lie within" in line for line in result.warnings)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    left = bytes_of(paths.root)
    record = json.loads(left.pop("sample.json"))
    assert left == bytes_of(folder / "whole") and record["catalog_hash"] == searched
    assert result.catalog.is_or_completes(searched) and not result.catalog.is_or_completes("0" * 64)
    # The recipe still asks for a sample, which is in the whole.
    again = run(recipe)
    assert not again.did_work and any("holds all of the sources already" in line for line in again.warnings)


def test_a_completion_that_was_stopped_goes_on_with_all_and_says_so_without(sampled):
    folder, recipe = sampled
    make_whole(recipe)
    recipe.paths.catalog.unlink()
    recipe.paths.receipt_of("tables-both-000000").unlink()
    with pytest.raises(MismatchError, match=r"shards\.sample was 'not given', is 220000.* run `fastmix preprocess --all`"):
        run(recipe)
    make_whole(recipe)
    assert bytes_of(recipe.paths.root).keys() - {"sample.json"} == bytes_of(folder / "whole").keys()
    assert load_catalog(recipe.paths.catalog).fingerprint == load_catalog(folder / "whole" / "catalog.parquet").fingerprint


def test_another_sample_or_none_is_refused_and_replaced_when_asked_to(sampled):
    folder, recipe = sampled
    with pytest.raises(MismatchError, match=r"shards\.sample was 220000, is 230000; run `fastmix preprocess --replace`"):
        run(recipe_of(folder, "sample", "shards.sample=230k"))
    with pytest.raises(MismatchError, match=r"shards\.sample_seed was 0, is 1"):
        run(recipe_of(folder, "sample", SAMPLE, "shards.sample_seed=1"))
    with pytest.raises(MismatchError, match=r"shards\.sample was 220000.*run `fastmix preprocess --all` for the whole"):
        run(recipe_of(folder, "sample"))
    before = {row["text_hash"] for row in documents_of(recipe.paths.root) if (row["source"], row["split"]) == ("books", "train")}
    run(recipe_of(folder, "sample", "shards.sample=230k"), replace=True)
    after = {row["text_hash"] for row in documents_of(recipe.paths.root) if (row["source"], row["split"]) == ("books", "train")}
    assert before < after
    assert not load_catalog(recipe.paths.catalog).is_or_completes(
        json.loads((folder / "sample" / "sample.json").read_text())["recipe_hash"]
    )


def test_a_sample_as_large_as_the_corpus_is_everything_and_exact(corpus):
    result = run(recipe_of(corpus, "large", "shards.sample=2B"))
    assert result.catalog.info.sample is None
    assert result.catalog.fingerprint == load_catalog(corpus / "whole" / "catalog.parquet").fingerprint
    assert any("2.00B tokens is as much as there is" in line for line in result.warnings)


def test_a_sample_too_small_for_a_sequence_names_the_key(corpus):
    with pytest.raises(InputError, match=r"target books: none .* held out; raise shards.sample from 60, or"):
        run(recipe_of(corpus, "tiny", "shards.sample=60"))
    with pytest.raises(InputError, match=r"source .*: its sample has .* training tokens; raise shards.sample from 400"):
        run(recipe_of(corpus, "tiny", "shards.sample=400", "target.sources={code: 1}"), replace=True)


def test_a_dataset_that_does_not_say_how_large_it_is_is_whole_and_that_is_said(corpus):
    plan = plan_preprocess(recipe_of(corpus, "unknown", SAMPLE))
    unknown = [dataclasses.replace(partition, num_bytes=0) for partition in plan.partitions["saved"]]
    result = preprocess(dataclasses.replace(plan, partitions={**plan.partitions, "saved": unknown}), workers=Workers(quiet=True))
    assert any("saved cannot be sized before reading and will be whole" in line for line in result.warnings)
    exact = load_catalog(corpus / "whole" / "catalog.parquet")
    assert "saved" not in result.catalog.info.sample.sources
    assert result.catalog.num_tokens("saved") == exact.num_tokens("saved")


def test_a_sample_is_not_imported_as_if_it_were_the_source(corpus):
    changes = ("tokenizer.file=sample/tokenizer/tokenizer.json", "tokenizer.bytes=false", "target=null")
    from_sample = "sources={notes: {tokens: {fastmix: sample, source: %s}}}"
    with pytest.raises(InputError, match=r"holds a sample of books.*run `fastmix preprocess --all`"):
        plan_preprocess(recipe_of(corpus, "importing", *changes, from_sample % "books"))
    assert run(recipe_of(corpus, "importing", *changes, from_sample % "notes")).catalog.num_tokens("notes")
