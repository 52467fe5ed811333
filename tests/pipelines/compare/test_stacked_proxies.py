"""Proxies trained side by side, against the same ones trained one by one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_comparison import job_of, plan_of, trained, workdir

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import FastmixError
from fastmix_data.machine import Workers
from pipelines.compare.pool import run_jobs
from pipelines.compare.run import compare
from pipelines.compare.side_by_side import run_side_by_side


def test_side_by_side_a_comparison_finds_the_same(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trains_alone(*_: object, **__: object) -> None:
        raise AssertionError("a proxy was trained alone")

    monkeypatch.setattr("pipelines.compare.proxies.train_on_mixture", trains_alone)
    folder = workdir(compared).compare
    before = {path.parent.name: read_json(path) for path in folder.root.glob("runs/*/losses.json")}
    for path in (folder.root / "runs", folder.root / "found"):
        shutil.rmtree(path)
    folder.comparison.unlink()
    workers = Workers(1, quiet=True)
    compare(plan_of(compared), methods="uniform,regmix:3,doremi", num_seeds=2, workers=workers, side_by_side=True)
    after = {path.parent.name: read_json(path) for path in folder.root.glob("runs/*/losses.json")}
    # The swarm, DoReMi's reference and uniform's proxies. What is fitted answers otherwise to its last digits, and others confirm it.
    same = before.keys() & after.keys()
    assert len(after) == 3 + 1 + 3 * 2 and len(same) >= 3 + 1 + 2
    for name in same:
        assert after[name].keys() == before[name].keys()
        for half, losses in before[name].items():
            assert after[name][half] == pytest.approx(losses, abs=1e-4)


def test_side_by_side_only_what_is_missing_is_done_and_measured_as_one_by_one(compared: Path) -> None:
    plan, workers = plan_of(compared), Workers(1, quiet=True)
    run_side_by_side([job_of(plan, 7), job_of(plan, 8)], workers, description="there", wanted=True)
    runs = trained(compared)
    jobs = [replace(job_of(plan, seed), names=("mid", "low")) for seed in (7, 8, 9)]
    run_side_by_side(jobs, workers, description="here", wanted=True)
    again = trained(compared)
    assert all(again[path] == runs[path] for path in runs) and len(again) == len(runs) + 1
    for job in jobs:
        stacked = job.result().losses
        job.folder.losses.unlink()
        assert job.finished() is None
        assert run_jobs([job], workers, description="alone")[0].losses == pytest.approx(stacked, abs=1e-5)


def test_side_by_side_a_proxy_that_diverges_is_not_kept(compared: Path) -> None:
    job = job_of(plan_of(compared, "training.learning_rate=1e30", "training.gradient_clipping=0"))
    with pytest.raises(FastmixError, match=r"lower training\.learning_rate"):
        run_side_by_side([job], Workers(1, quiet=True), description="here", wanted=True)
    assert job.finished() is None


def test_why_proxies_are_not_trained_side_by_side_is_said_once(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2 = "proxy.config={model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}"  # which has dropout
    jobs = [replace(job_of(plan_of(compared, gpt2), seed), names=names) for seed in (7, 8) for names in (("low",), ("mid",))]
    run_side_by_side(jobs, Workers(1), description="here", wanted=True)
    assert capsys.readouterr().err.count("proxies are trained one by one: GPT2LMHeadModel cannot be stacked") == 1
    assert [job.finished() for job in jobs] == [None] * 4
