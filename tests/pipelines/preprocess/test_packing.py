"""Examples of which only part carries loss stay whole, in windows that are nearly full; what does not fit is counted and said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import documents_of, run

from fastmix_data.audit.inspection import format_inspection, inspect
from fastmix_data.audit.verify import verify
from fastmix_data.errors import InputError, MismatchError, RecipeError
from fastmix_data.permutation import derive_keys
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog
from fastmix_data.tokens.encoding import EncodedDocuments
from fastmix_data.tokens.tokenizer import END_OF_TEXT, load_tokenizer
from pipelines.preprocess import partition_job
from pipelines.preprocess.packing import best_fit, fit_examples, pack_examples
from pipelines.preprocess.plan import plan_preprocess
from pipelines.reading.bad_text import DocumentCounts

EOS = 256


@given(st.lists(st.integers(1, 64), min_size=1, max_size=300), st.sampled_from([64, 100]))
@settings(deadline=None, max_examples=60)
def test_best_fit_overfills_no_window_and_is_what_one_by_one_gives(lengths: list[int], window: int) -> None:
    found = best_fit(np.array(lengths), window_tokens=window)
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(window - length)
    filled = np.bincount(found, weights=lengths)
    assert sorted((window - filled).tolist()) == sorted(rooms)


def examples(lengths: list[int], prompts: list[int]) -> EncodedDocuments:
    """Examples whose tokens tell where they are from: 1000 times the example's number and the place in it."""
    tokens = np.concatenate([1000 * (number + 1) + np.arange(length) for number, length in enumerate(lengths)]).astype("<u2")
    mask = np.concatenate([np.arange(n) >= p for n, p in zip(lengths, prompts, strict=True)]).astype(np.uint8)
    return EncodedDocuments(tokens, np.cumsum(lengths), np.array(prompts), mask)


@pytest.mark.parametrize(
    ("on_long", "expected", "counted"),
    [
        ("truncate", {0: [(0, 6)], 1: [(0, 8)], 2: [(0, 8)]}, {"num_truncated": 3, "num_without_loss": 4}),
        ("skip", {0: [(0, 6)], 1: [(0, 8)]}, {"num_skipped": 3, "num_without_loss": 2}),
        ("split", {0: [(0, 6)], 1: [(0, 8)], 2: [(0, 8), (8, 16), (16, 19)], 3: [(8, 12)]},
         {"num_split": 3, "num_without_loss": 5}),
    ],
)  # fmt: skip
def test_long_examples_follow_the_recipe_and_what_has_nothing_to_learn_is_left_out(
    on_long: Any, expected: dict[int, list[tuple[int, int]]], counted: dict[str, int]
) -> None:
    # The fourth has no loss in its first eight tokens, the fifth only at the first token of its second piece, the last two nowhere.
    encoded = examples([6, 8, 19, 12, 9, 1, 4], [2, 0, 5, 9, 8, 0, 4])
    counts = DocumentCounts()
    fitted, document_E = fit_examples(encoded, window_tokens=8, on_long=on_long, counts=counts)
    pieces: dict[int, list[tuple[int, int]]] = {}
    for document, start, end in zip(document_E.tolist(), fitted.starts_D.tolist(), fitted.ends_D.tolist(), strict=True):
        first, last = int(fitted.tokens[start]), int(fitted.tokens[end - 1])
        assert first // 1000 == last // 1000 == document + 1
        pieces.setdefault(document, []).append((first % 1000, last % 1000 + 1))
    assert pieces == expected
    assert {name: count for name, count in asdict(counts).items() if count} == counted
    assert fitted.loss_mask is not None
    by_token = dict(zip(encoded.tokens.tolist(), encoded.loss_mask.tolist(), strict=True))
    assert [by_token[token] for token in fitted.tokens.tolist()] == fitted.loss_mask.tolist()
    prompts = [
        sum(not by_token[token] for token in fitted.tokens[start:end].tolist())
        for start, end in zip(fitted.starts_D, fitted.ends_D, strict=True)
    ]
    assert fitted.num_prompt_tokens_D.tolist() == prompts


@given(st.lists(st.integers(2, 16), min_size=1, max_size=60), st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=40)
def test_windows_hold_every_example_once_and_padding_after_them(lengths: list[int], min_windows: int) -> None:
    encoded = examples(lengths, [length // 2 for length in lengths])
    packed = pack_examples(encoded, window_tokens=16, eos_id=EOS, key=derive_keys(3), min_windows=min_windows)
    assert sorted(packed.order_E.tolist()) == list(range(len(lengths))) and len(packed.tokens) % 16 == 0
    assert len(packed.tokens) >= 16 * min(min_windows, len(lengths))
    is_free = np.ones(len(packed.tokens), np.bool_)
    for number, start in zip(packed.order_E.tolist(), packed.start_E.tolist(), strict=True):
        here = slice(start, start + lengths[number])
        assert start // 16 == (here.stop - 1) // 16 and is_free[here].all()
        is_free[here] = False
        assert packed.tokens[here].tolist() == [1000 * (number + 1) + place for place in range(lengths[number])]
        learned = np.arange(lengths[number]) >= max(lengths[number] // 2, 1)
        assert packed.loss_mask[here].tolist() == learned.tolist() and packed.starts[here].tolist() == [1] + [0] * (
            len(learned) - 1
        )
    assert (packed.tokens[is_free] == EOS).all() and not packed.loss_mask[is_free].any()
    before = np.concatenate([[False], is_free[:-1]])
    assert packed.starts[is_free].tolist() == np.where(before[is_free], 0, 2).tolist()


def test_the_place_of_a_window_does_not_tell_how_long_its_examples_are() -> None:
    lengths = np.random.default_rng(0).integers(2, 64, 4000).tolist()
    packed = pack_examples(examples(lengths, [1] * 4000), window_tokens=64, eos_id=EOS, key=derive_keys(5))
    longest_W = np.zeros(len(packed.tokens) // 64)
    np.maximum.at(longest_W, packed.start_E // 64, np.array(lengths)[packed.order_E])
    assert abs(np.corrcoef(np.arange(len(longest_W)), longest_W)[0, 1]) < 3 / len(longest_W) ** 0.5


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe of one source of pairs as bytes and one of text; a function writes it, with changes of its sections."""

    def write(lengths: list[int], *, source: dict[str, Any] | None = None, length: int = 64, **shards: Any) -> Recipe:
        lines = [{"q": f"{n:04d}" + "?" * (size // 2), "a": "!" * (size - size // 2 - 6)} for n, size in enumerate(lengths)]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "plain.txt").write_text("plain text " * 200)
        section = {"files": "pairs.jsonl", "prompt": "q", "completion": "a", **(source or {})}
        recipe = {
            "tokenizer": {"bytes": True},
            "sources": {"qa": section, "plain": {"files": "plain.txt"}},
            "shards": {"block_tokens": 128, "valid_fraction": 0.2, **shards},
            "target": {"sources": {"qa": 1}},
            "training": {"token_budget": "20k", "sequence_length": length, "global_batch": 4},
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        return load_recipe(tmp_path / "recipe.yaml")

    return write


def windows_of(catalog: Catalog, source: str, split: Any) -> list[list[int]]:
    """Tokens of each window of a split, as its rows count them."""
    window = catalog.info.example_tokens
    assert window is not None
    flat = [
        catalog.open(row).tokens_NT[:, :-1].reshape(-1)[: row.num_tokens].reshape(-1, window)
        for row in catalog.shards(source, split)
    ]
    return np.concatenate(flat).tolist()


def test_every_example_of_a_corpus_lies_whole_in_one_window(
    pairs: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = np.random.default_rng(1).integers(14, 62, 300).tolist()
    monkeypatch.setattr(partition_job, "TOKENS_PACKED_AT_ONCE", 2000)  # several rounds of packing, one after another
    recipe = pairs(lengths, max_partition_bytes=8000, max_shard_bytes=2600)
    result = run(recipe)
    catalog = result.catalog
    assert catalog.info.example_tokens == 64 and catalog.info.statistics["qa"]["num_documents"] == 300
    texts = {f"{n:04d}" + "?" * (size // 2) + "\n" + "!" * (size - size // 2 - 6) for n, size in enumerate(lengths)}
    tokenizer, found = load_tokenizer(recipe.paths.tokenizer), []
    for split in ("train", "valid"):
        for window in windows_of(catalog, "qa", split):
            written = tokenizer.decode(window, skip_special_tokens=False).split(END_OF_TEXT)
            found += [example for example in written if example]
    assert sorted(found) == sorted(texts)
    assert len({row.path.rsplit("-", 1)[0] for row in catalog.rows if row.source == "qa"}) > 2  # partitions
    assert (catalog.fill("qa") or 0) > 0.9 and catalog.fill("plain") is None
    assert f"examples fill their windows of 64 tokens: qa {catalog.fill('qa'):.1%}" in result.message
    report = verify(tmp_path / "run", quiet=True)
    assert report.ok, str(report)


def test_inspect_shows_examples_and_padding_and_no_padding_as_text(pairs: Callable[..., Recipe], tmp_path: Path) -> None:
    catalog = run(pairs([30, 40, 33, 50, 20, 61, 14] * 6)).catalog
    assert "filled" in format_inspection(inspect(tmp_path / "run" / "catalog.parquet"))
    by_locator = {row["locator"]: row for row in documents_of(tmp_path / "run") if row["source"] == "qa"}
    seen = []
    for row in (row for row in catalog.rows if row.source == "qa"):
        num_padding = 0
        for number in range(row.num_blocks):
            content = inspect(catalog.root / row.path, block=number)
            block = content["block"]
            covered = [(document["first"], document["last"]) for document in block["documents"]] + block["padding"]
            assert [place for first, last in sorted(covered) for place in range(first, last + 1)] == list(
                range(block["num_tokens"])
            )
            assert all(document["num_tokens"] == document["last"] - document["first"] + 1 for document in block["documents"])
            seen += [document["locator"] for document in block["documents"]]
            written = sum(document["num_tokens"] for document in block["documents"])
            assert block["num_padding"] == 128 - written and block["text"].count(END_OF_TEXT) == len(block["documents"])
            inner = sum(last - first + 1 for first, last in block["padding"])
            num_padding += inner
            text = format_inspection(content)
            assert all(f"tokens {first} to {last}: padding" in text for first, last in block["padding"])
        assert num_padding == row.num_padding
    assert sorted(seen) == sorted(by_locator)


def test_a_few_held_out_examples_give_both_halves_some(pairs: Callable[..., Recipe]) -> None:
    catalog = run(pairs([14] * 30)).catalog
    assert sum(row.num_documents for row in catalog.shards("qa", "valid")) <= 9
    assert len(windows_of(catalog, "qa", "valid")) == 2


@pytest.mark.parametrize(
    ("on_long", "said", "num_documents"),
    [
        (
            "truncate",
            "20 examples of more than 64 tokens were cut to their first 64 (qa 20); to keep longer ones whole, raise",
            60,
        ),
        (
            "skip",
            "20 examples of more than 64 tokens were left out (qa 20); to keep longer ones whole, raise training.sequence",
            40,
        ),
        ("split", "20 examples of more than 64 tokens were split into several (qa 20); to keep longer ones whole, raise", 60),
    ],
)
def test_long_examples_are_counted_and_said_once_with_a_remedy(
    pairs: Callable[..., Recipe], tmp_path: Path, on_long: str, said: str, num_documents: int
) -> None:
    result = run(pairs([30] * 20 + [100] * 20 + [40] * 20, source={"on_long_example": on_long}))
    assert sum(warning.startswith(said) for warning in result.warnings) == 1
    assert result.catalog.info.statistics["qa"]["num_documents"] == num_documents
    assert verify(tmp_path / "run", quiet=True).ok


def test_a_source_or_target_in_which_nothing_is_left_to_learn_is_refused_with_the_length(pairs: Callable[..., Recipe]) -> None:
    with pytest.raises(
        InputError, match=r"target qa: none of its held-out examples has a token to learn within 16 tokens; raise training.se"
    ):
        run(pairs([100] * 40, length=16))
    recipe = pairs([100] * 40, length=16)
    without_target = recipe.model_copy(update={"target": None}).located(recipe.base)
    with pytest.raises(
        InputError, match=r"source qa: .*no example has a token to learn within 16 tokens; raise training.sequence_length"
    ):
        run(without_target)


def test_the_length_of_windows_is_the_sequence_length_or_stated_and_divides_it(pairs: Callable[..., Recipe]) -> None:
    assert plan_preprocess(pairs([20] * 20)).example_tokens == 64
    assert plan_preprocess(pairs([20] * 20, example_tokens=32)).example_tokens == 32
    assert plan_preprocess(pairs([20] * 20, source={"prompt": None, "completion": None, "text": "a"})).example_tokens is None
    without_training = pairs([20] * 20).model_copy(update={"training": None})
    assert without_training.example_tokens == 128
    with pytest.raises(
        RecipeError, match=r"sequence_length 32 is no multiple of shards.example_tokens 64, and would cut examples apart"
    ):
        pairs([20] * 20, length=32, example_tokens=64)
    with pytest.raises(RecipeError, match=r"shards.example_tokens 48 does not divide shards.block_tokens 128"):
        pairs([20] * 20, example_tokens=48)


def test_another_sequence_length_makes_examples_anew_only_if_asked_and_leaves_plain_text_alone(
    pairs: Callable[..., Recipe],
) -> None:
    before = run(pairs([30] * 60))
    with pytest.raises(MismatchError, match=r"shards.example_tokens was 64, is 32"):
        run(pairs([30] * 60, length=32))
    assert not run(pairs([30] * 60, length=128, example_tokens=64)).did_work  # a multiple of the windows that are there
    kept = {row.path: (before.catalog.root / row.path).stat().st_mtime_ns for row in before.catalog.rows if row.source == "plain"}
    after = run(pairs([30] * 60, length=32), replace=True)
    assert after.catalog.info.example_tokens == 32
    assert {path: (after.catalog.root / path).stat().st_mtime_ns for path in kept} == kept


@pytest.mark.skipif("FASTMIX_CORPUS" not in os.environ, reason="needs FASTMIX_CORPUS")
def test_question_answer_sets_fill_their_windows(tmp_path: Path) -> None:
    corpus = Path(os.environ["FASTMIX_CORPUS"]).resolve() / "sft"
    names = ["arc_challenge", "gsm8k", "hellaswag", "piqa", "sciq", "strategyqa"]
    recipe = {
        "tokenizer": {"train": {"vocab_size": 2000, "sample_bytes": 500_000}},
        "sources": {
            name: {"files": f"{corpus}/{name}/train.jsonl", "prompt": "question", "completion": "answer"} for name in names
        },
        "training": {"token_budget": "2M", "sequence_length": 512},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    catalog = run(load_recipe(tmp_path / "recipe.yaml")).catalog
    assert all((catalog.fill(name) or 0) > 0.9 for name in names)
