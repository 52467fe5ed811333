"""After preprocessing: sources and targets that a search could learn nothing from are refused, and scarce ones are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_corpora import run, texts

from fastmix_data.errors import InputError
from fastmix_data.recipe.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
LONG = " ".join(texts("long", 60, 40))
PAIR = {"prompt": "q", "completion": "a"}


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs), encoding="utf-8")


def test_a_target_without_a_loss_token_within_a_sequence_is_refused_by_name(small: MakeRecipe, tmp_path: Path) -> None:
    write_pairs(tmp_path / "exam.jsonl", [(LONG, "yes")])
    # Another target that has enough does not make up for it.
    recipe = small(target={"sources": {"a": 1}, "files": {"exam": {"files": "exam.jsonl", **PAIR}}})
    with pytest.raises(InputError) as caught:
        run(recipe)
    assert str(caught.value).startswith(
        "target exam: none of its held-out examples has a token to learn within 16 tokens; raise training.sequence_length"
    )
    assert not recipe.paths.catalog.exists()


def test_a_target_with_few_loss_tokens_is_a_warning_with_their_number(small: MakeRecipe, tmp_path: Path) -> None:
    write_pairs(tmp_path / "exam.jsonl", [(f"q{number}", "a" * 9) for number in range(8)])
    (warning,) = [
        line for line in run(small(target={"files": {"exam": {"files": "exam.jsonl", **PAIR}}})).warnings if "loss" in line
    ]
    assert "fewer than 1,000 loss tokens (exam 40)" in warning and "hold out more" in warning


@pytest.mark.parametrize("changes", [{"training": None}, {}])
def test_few_documents_of_a_target_are_a_warning_with_their_number(small: MakeRecipe, changes: dict[str, Any]) -> None:
    warnings = run(small(**changes)).warnings
    told = [line for line in warnings if "documents of a target" in line]
    assert bool(told) == bool(not changes)
    if told:
        assert told[0].startswith("the search sees fewer than 10 documents of a target (a ") and "hold out more" in told[0]
