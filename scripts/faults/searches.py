"""Two small searches that between them train all kinds of proxies: a reference run and scores; scores and trials."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from planted import plan_planted

from fastmix_data.recipe import search as search_section
from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.recipe.target import TargetSection
from fastmix_data.workdir import SearchFolder
from train.search import trials
from train.search.plan import SearchPlan

LENGTH, BATCH = 16, 8
STEP = LENGTH * BATCH
SIZES = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TRAINING = {"sequence_length": LENGTH, "global_batch": BATCH, "learning_rate": 5e-3}
SEARCH = {"update_interval": 2, "eval_sequences": 8, "target_batch": 4, "checkpoint_interval": 2}
_FEWEST_TRIAL_STEPS = 4  # instead of 30: what is looked at is where trials go on, not what they find
# Steps in all, of 44 of which 33 are trials; and ZeRO stages.
SETTINGS: dict[str, dict[str, Any]] = {
    "reference": {"steps": 14, "trials": 0.0, "stages": (1, 3)},
    "trials": {"steps": 44, "trials": 0.75, "stages": (0, 2)},
}


def plans(root: Path) -> dict[str, SearchPlan]:
    """By name; the corpus is written there."""
    search_section.FEWEST_TRIAL_STEPS = trials.FEWEST_TRIAL_STEPS = _FEWEST_TRIAL_STEPS
    found = {}
    for name, setting in SETTINGS.items():
        training = {**TRAINING, "token_budget": setting["steps"] * STEP}
        search = {**SEARCH, "trial_fraction": setting["trials"]}
        plan = plan_planted(root, num_blocks=16, proxy=SIZES, training=training, search=search)
        if name == "reference":
            limited = TargetSection.model_validate({**plan.target.model_dump(), "not_worse_than": "uniform"})
            plan = replace(plan, target=limited, sections=plan.sections.model_copy(update={"target": limited}))
        found[name] = plan
    return found


def in_folder(plan: SearchPlan, folder: Path, *, stage: int) -> SearchPlan:
    """The same search at a ZeRO stage, with a folder of its own."""
    deepspeed = DeepspeedSection(zero_stage=stage)
    return replace(
        plan,
        folder=SearchFolder(folder),
        proxy=replace(plan.proxy, deepspeed=deepspeed),
        sections=plan.sections.model_copy(update={"deepspeed": deepspeed}),
    )


def difference(found: SearchFolder, expected: SearchFolder, *, tolerance: float) -> str:
    """How the outcomes of two searches differ; empty if they do not.

    Args:
        tolerance: of weights and losses, relative to the largest; with 0 everything but times must be the same bytes.
    """
    if tolerance == 0:
        if found.trajectory.read_bytes() != expected.trajectory.read_bytes():
            return "the trajectories are not the same bytes"
        contents = [json.loads(folder.mixture.read_text()) for folder in (found, expected)]
        for content in contents:
            content["search"]["seconds"] = 0
        return "" if contents[0] == contents[1] else "the mixtures are not the same"
    rows = [pq.read_table(folder.trajectory) for folder in (found, expected)]
    for name in ("step", "tokens", "weights", "train_loss", "target_loss"):
        ours, theirs = (np.array(table[name].to_pylist(), dtype=float) for table in rows)
        if ours.shape != theirs.shape:
            return f"the trajectories have {len(ours)} and {len(theirs)} rows"
        largest = np.abs(ours - theirs).max() / np.abs(theirs).max()
        if largest > tolerance:
            return f"{name} differs by {largest:.1e}"
    return ""
