"""Leaving behind what a search leaves that was told to end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastmix_data.errors import Interrupted
from train.checkpoints import checkpoints as checkpoints_module
from train.search import search as search_module
from train.search import trials as trials_module
from train.search.plan import SearchPlan


def stop_after_a_checkpoint(plan: SearchPlan, *, run: str = "scores", message: str = "the search") -> None:
    """Search until the first checkpoint of one of its runs is written; the signal that a scheduler sends comes right after it."""
    _stop_after_first(
        checkpoints_module, "write_index", plan, message=rf"{message} (is|are) saved( at step \d+ of \d+)?", run=run
    )


def stop_after_a_trial(plan: SearchPlan) -> None:
    """Search until the first trial is saved."""
    _stop_after_first(trials_module, "write_json", plan, message="1 trial of the search is saved")


def _stop_after_first(module: ModuleType, name: str, plan: SearchPlan, *, message: str, run: str = "") -> None:
    is_told, real = False, getattr(module, name)

    def save_and_be_told(*arguments: Any, **options: Any) -> None:
        nonlocal is_told
        real(*arguments, **options)
        if not is_told and (not run or Path(arguments[0]).parent.name == run):
            is_told = True
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, save_and_be_told)
        with pytest.raises(Interrupted, match=f"{message}; the same command goes on from there"):
            search_module.search(plan, quiet=True)
