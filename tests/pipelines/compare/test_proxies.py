"""Proxies of a comparison: the same wherever they are trained, and kept by what decides them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_comparison import BATCH, LENGTH, STEPS, job_of, plan_of, workdir

from fastmix_data.errors import FastmixError
from fastmix_data.machine import Workers
from fastmix_data.recipe.training import TrainingSection
from pipelines.compare.pool import run_jobs
from pipelines.compare.searches import ReweightingJob
from train.proxy.training import ProxyPlan
from train.search.plan import SearchPlan


def test_workers_train_the_same_proxies_as_this_process(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs = [job_of(plan_of(compared), seed) for seed in (7, 8)]
    first = run_jobs(jobs, Workers(1, quiet=True), description="here")
    shutil.rmtree(workdir(compared).compare.root / "runs")
    again = run_jobs(jobs, Workers(2, quiet=True), description="there")
    assert [result.losses["low"] for result in again] == pytest.approx([result.losses["low"] for result in first], abs=1e-5)


def test_a_failing_job_s_error_comes_home(compared: Path) -> None:
    job = job_of(plan_of(compared, "training.learning_rate=1e30", "training.gradient_clipping=0"))
    with pytest.raises(FastmixError, match=r"lower training\.learning_rate"):
        run_jobs([job], Workers(1, quiet=True), description="here")
    assert job.finished() is None


OTHER_TRAINING: dict[str, Any] = {
    "token_budget": 2 * STEPS * BATCH * LENGTH,
    "sequence_length": 16,
    "global_batch": 4,
    "micro_batch": 2,
    "learning_rate": 0.01,
    "warmup_fraction": 0.2,
    "min_lr_fraction": 0.5,
    "weight_decay": 0.0,
    "adam_betas": (0.8, 0.9),
    "gradient_clipping": 0.5,
    "precision": "fp32",
    "locality_window": 8,
    "document_attention": True,
    "activation_checkpointing": True,
    "compile": True,
}


def test_a_proxy_is_kept_by_everything_that_decides_it_and_by_nothing_else(compared_once: Path) -> None:
    """A new key has to be put on one side, or stale proxies would be used."""
    assert set(OTHER_TRAINING) == set(TrainingSection.model_fields) - {"seed"}  # which is given to each run
    assert set(ProxyPlan.__dataclass_fields__) == {"catalog", "proxy", "base", "training", "deepspeed", "production_tokens"}
    plan = plan_of(compared_once)

    def folder(plan: SearchPlan) -> Path:
        return job_of(plan).folder.root

    others = [plan_of(compared_once, f"training.{key}={json.dumps(value)}") for key, value in OTHER_TRAINING.items()]
    others += [plan_of(compared_once, "proxy.config.hidden_size=8"), plan_of(compared_once, "search.match_repetition=true")]
    assert len({folder(plan), *map(folder, others), job_of(plan, seed=8).folder.root}) == len(others) + 2
    rest = f"training.token_budget={STEPS * BATCH * LENGTH + 1}"  # makes no step
    for override in (
        rest,
        "training.seed=5",
        "search.update_interval=4",
        "search.eval_sequences=4",
        "target={sources: {mid: 1}}",
    ):
        assert folder(plan_of(compared_once, override)) == folder(plan), override


def test_a_reweighting_search_is_kept_by_its_seed_and_doge_s_by_its_target_too(compared_once: Path) -> None:
    plan, seed = plan_of(compared_once), plan_of(compared_once, "training.seed=5")
    target = plan_of(compared_once, "target={sources: {mid: 1}}")
    doge, doremi = ([ReweightingJob(one, kind).path for one in (plan, seed, target)] for kind in ("doge", "doremi"))
    assert len(set(doge)) == 3 and doremi[0] == doremi[2] != doremi[1]
    assert ReweightingJob(plan, "doge").finished() is not None
