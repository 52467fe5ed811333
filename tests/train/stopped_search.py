"""Leaving behind what a search leaves that was told to end."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from fastmix_data.errors import Interrupted
from train.proxy.checkpoint import save_checkpoint
from train.search import search as module
from train.search.plan import SearchPlan


def stop_after_a_checkpoint(plan: SearchPlan) -> None:
    """Search until the first checkpoint is written; the signal that a scheduler sends comes right after it."""
    is_told = False

    def save_and_be_told(*arguments: Any, **options: Any) -> None:
        nonlocal is_told
        save_checkpoint(*arguments, **options)
        if not is_told:
            is_told = True
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_checkpoint", save_and_be_told)
        with pytest.raises(Interrupted, match=r"the search is saved at step \d+ of \d+; the same command goes on from there"):
            module.search(plan, quiet=True)
