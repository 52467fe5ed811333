"""A run that was stopped goes on; a run over changed things refuses, and replaces what changed when asked to."""

import os
import shutil
import signal
import subprocess
import sys
import time

import distributed
import pytest
from small_corpora import bytes_of, json_lines, run, texts

from fastmix_data.errors import FastmixError, InputError, MismatchError
from fastmix_data.machine import Workers
from fastmix_data.recipe.load import load_recipe
from fastmix_data.shards.catalog import load_catalog
from fastmix_data.tokens.tokenizer import train_tokenizer
from pipelines import cluster
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess

_SLOW_RUN = """
import sys, time
from pathlib import Path
import pipelines.preprocess.partition_job as work
from fastmix_data.recipe.load import load_recipe
from fastmix_data.machine import Workers
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess
save = work.save_receipt
def slow(workdir, receipt):
    time.sleep(0.15)
    save(workdir, receipt)
work.save_receipt = slow
preprocess(plan_preprocess(load_recipe(Path(sys.argv[1]), sys.argv[2:])), workers=Workers(quiet=True))
"""


def _start_slow_run(folder, workdir, num_receipts):
    """A run in a process of its own that has got as far as some receipts."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_RUN, str(folder / "recipe.yaml"), f"workdir={workdir}"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list((workdir / "receipts").glob("*.json"))) < num_receipts:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_run_that_was_stopped_and_then_killed_does_only_what_is_missing_and_gives_the_same_bytes(done, tmp_path):
    folder, recipe, _ = done
    workdir = tmp_path / "stopped"
    again = load_recipe(folder / "recipe.yaml", [f"workdir={workdir}"])
    process = _start_slow_run(folder, workdir, 2)
    with pytest.raises(FastmixError, match="another fastmix preprocess works in this workdir"):
        run(again)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and "run the same command again to go on" in said
    kept = {path: path.stat().st_mtime_ns for path in (workdir / "receipts").glob("*.json")}
    process = _start_slow_run(folder, workdir, max(9, len(kept) + 1))
    process.kill()
    process.communicate()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not (workdir / "catalog.parquet").exists()
    (workdir / "shards" / "books" / "train-000099-00000.tar").write_bytes(b"left over")
    (workdir / "shards" / "books" / "x.tar.123.partial").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in (workdir / "receipts").glob("*.json")}
    assert len(kept) >= 9 and run(again).did_work
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert bytes_of(workdir) == bytes_of(recipe.paths.root)


def test_two_workers_and_a_running_cluster_give_the_bytes_of_one_worker(done, tmp_path, monkeypatch):
    folder, recipe, _ = done
    for name in cluster._ONE_THREAD:  # a running cluster's workers are told so; here they are threads of this process
        monkeypatch.setenv(name, "1")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address=None,
        scheduler_kwargs=cluster._ANY_FREE_PORT,
    ) as running:
        for workdir, options in (("two", {"num_workers": 2}), ("running", {"scheduler": running.scheduler_address})):
            other = load_recipe(folder / "recipe.yaml", [f"workdir={tmp_path / workdir}"])
            run(other, **options)
            assert bytes_of(other.paths.root) == bytes_of(recipe.paths.root)


def test_no_scheduler_at_an_address_is_one_line(small, monkeypatch):
    monkeypatch.setattr(cluster, "_SECONDS_TO_CONNECT", 0.3)
    with pytest.raises(FastmixError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there") as caught:
        run(small(), scheduler="tcp://127.0.0.1:9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_a_worker_reaches_the_user_as_one_line_and_leaves_no_catalog(small, tmp_path, num_workers):
    good = texts("a", 2000, 200)
    (tmp_path / "a.jsonl").write_bytes(json_lines(good) + b"{oops\n")
    recipe = small()
    plan = plan_preprocess(recipe)  # the bad line is further down than the plan looks
    with pytest.raises(
        InputError,
        match=r"^a\.jsonl: line 2001: not valid JSON .*; fix or remove the line, or set on_bad_record: skip or quarantine$",
    ):
        preprocess(plan, workers=Workers(num_workers, quiet=True))
    workdir = recipe.paths.root
    assert not (workdir / "catalog.parquet").exists()
    assert not list(workdir.rglob("*.partial")) or num_workers == 2
    (tmp_path / "a.jsonl").write_bytes(json_lines(good))
    run(recipe)
    assert not list(workdir.rglob("*.partial"))


def test_a_second_run_does_nothing_and_says_so(done):
    _, recipe, result = done
    before = {path: path.stat().st_mtime_ns for path in recipe.paths.root.rglob("*") if path.name != ".preprocess.lock"}
    again = run(recipe)
    assert not again.did_work and "nothing to do" in again.message
    assert again.catalog.fingerprint == result.catalog.fingerprint
    after = {path: path.stat().st_mtime_ns for path in recipe.paths.root.rglob("*") if path.name != ".preprocess.lock"}
    assert before == after


def test_a_missing_shard_is_made_again(small):
    recipe = small()
    first = run(recipe)
    before = bytes_of(recipe.paths.root)
    (recipe.paths.root / first.catalog.rows[0].path).unlink()
    assert run(recipe).did_work
    assert bytes_of(recipe.paths.root) == before


def test_changed_files_are_refused_by_name_and_replaced_when_asked(small, tmp_path):
    recipe = small()
    run(recipe)
    untouched = (recipe.paths.root / "receipts" / "b-both-000000.json").stat().st_mtime_ns
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert not run(recipe).did_work, "another time of modification alone is no change"
    size = (tmp_path / "a.jsonl").stat().st_size
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes().replace(b"a-3 ", b"a-x "))
    assert (tmp_path / "a.jsonl").stat().st_size == size
    before = bytes_of(recipe.paths.root)
    with pytest.raises(MismatchError, match=r"a\.jsonl: changed since .*fastmix preprocess --replace"):
        run(recipe)
    assert bytes_of(recipe.paths.root) == before
    assert run(recipe, replace=True).did_work
    assert (recipe.paths.root / "receipts" / "b-both-000000.json").stat().st_mtime_ns == untouched
    assert not run(recipe).did_work


def test_a_change_in_one_of_many_tiny_files_makes_its_group_anew_and_no_other(small, tmp_path):
    for number, text in enumerate(texts("c", 40, 20)):
        (tmp_path / f"c{number:02d}.jsonl").write_bytes(json_lines([text]))
    recipe = small(
        sources={"c": {"files": "c*.jsonl"}},
        shards={"block_tokens": 64, "valid_fraction": 0.2, "max_partition_bytes": 8000},
        target=None,
    )
    run(recipe)
    receipts = sorted((recipe.paths.root / "receipts").iterdir())
    assert 3 < len(receipts) < 20
    before = {path: path.stat().st_mtime_ns for path in receipts}
    changed = tmp_path / "c20.jsonl"
    changed.write_bytes(changed.read_bytes().replace(b"c-20 ", b"c-xx "))
    with pytest.raises(MismatchError, match=r"c20\.jsonl: changed since"):
        run(recipe)
    run(recipe, replace=True)
    done_again = [path for path in receipts if path.stat().st_mtime_ns != before[path]]
    assert len(done_again) == 1 and b'"c20.jsonl"' in done_again[0].read_bytes()
    again = bytes_of(recipe.paths.root)
    shutil.rmtree(recipe.paths.root)
    run(recipe, num_workers=2)
    assert bytes_of(recipe.paths.root) == again


def test_added_and_removed_files_are_refused_by_name(small, tmp_path):
    recipe = small(sources={"a": {"files": "[ac].jsonl"}, "b": {"files": "b.jsonl"}})
    run(recipe)
    (tmp_path / "c.jsonl").write_bytes(json_lines(texts("c", 10)))
    with pytest.raises(MismatchError, match=r"c\.jsonl: was added since .*--replace"):
        run(recipe)
    assert run(recipe, replace=True).catalog.info.statistics["a"]["num_documents"] == 70
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(MismatchError, match=r"c\.jsonl: was removed since .*--replace"):
        run(recipe)
    run(recipe, replace=True)
    assert len(list((recipe.paths.root / "receipts").iterdir())) == 2
    assert {row.path for row in load_catalog(recipe.paths.root / "catalog.parquet").rows} == {
        str(path.relative_to(recipe.paths.root)) for path in recipe.paths.root.rglob("*.tar")
    }


def test_a_changed_recipe_is_refused_by_key(small, tmp_path):
    run(small())
    changed = small(shards={"block_tokens": 128, "valid_fraction": 0.2}, tokenizer={"bytes": True, "eos_token": "x"})
    with pytest.raises(MismatchError, match=r"shards\.block_tokens was 64, is 128.*--replace"):
        run(changed)
    training = {"token_budget": "40k", "sequence_length": 16, "global_batch": 4}
    assert not run(small(training=training)).did_work
    replaced = run(small(shards={"block_tokens": 128, "valid_fraction": 0.2}), replace=True)
    assert replaced.catalog.info.block_tokens == 128


def test_a_changed_tokenizer_file_is_refused(small, tmp_path):
    path = tmp_path / "tok.json"
    path.write_text(train_tokenizer(texts("a", 60), vocab_size=300), encoding="utf-8")
    recipe = small(tokenizer={"file": "tok.json"})
    run(recipe)
    path.write_text(train_tokenizer(texts("a", 60), vocab_size=320), encoding="utf-8")
    with pytest.raises(MismatchError, match=r"tokenizer .*--replace"):
        run(recipe)
    assert run(recipe, replace=True).catalog.info.vocab_size == 320
