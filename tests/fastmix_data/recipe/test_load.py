"""What is wrong with a recipe is said in one line with its remedy; sections are asked for by those who need them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.load import load_recipe, parse_recipe
from fastmix_data.recipe.training import TrainingSection

LEAST: dict[str, Any] = {"tokenizer": {"bytes": True}, "sources": {"a": {"files": "a.txt"}, "b": {"files": "b.txt"}}}
TRAINING = {"token_budget": "2M", "sequence_length": 64}


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_preprocessing_needs_a_tokenizer_and_sources_only(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path / "recipe.yaml", LEAST))
    assert (recipe.target, recipe.training, recipe.emit) == (None, None, None)
    assert recipe.search.update_interval == 16 and recipe.paths.root == tmp_path / "run"
    for section, example in (("target", "sources: {NAME: 1}"), ("training", "token_budget: 2M"), ("emit", "token_budget: 100M")):
        with pytest.raises(RecipeError) as error:
            recipe.required(section)
        assert section in str(error.value) and example in error.value.remedy and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("proxy", "search", "found"),
    [
        ({}, {}, (3e-3, "count", "all")),
        ({"checkpoint": "model"}, {}, (1e-4, "uniform", "all")),
        ({"checkpoint": "model", "lora": {}}, {"initial_weights": None}, (1e-3, "uniform", "all")),
        ({"checkpoint": "model"}, {"initial_weights": "count"}, (1e-4, "count", "all")),
        ({"checkpoint": "model"}, {"method": "paper"}, (1e-4, "uniform", "head")),
    ],
)
def test_defaults_are_those_of_a_checkpoint_where_the_proxy_starts_from_one(
    tmp_path: Path, proxy: dict[str, Any], search: dict[str, Any], found: tuple[object, ...]
) -> None:
    content = {**LEAST, "training": TRAINING, "search": search, **({"proxy": proxy} if proxy else {})}
    recipe = load_recipe(written(tmp_path / "recipe.yaml", content))
    section, training = recipe.search, recipe.required("training")
    assert (training.learning_rate, section.initial_weights, section.hypergradient) == found
    assert load_recipe(tmp_path / "recipe.yaml", ["training.learning_rate=0.5"]).required("training").learning_rate == 0.5


def test_adapters_without_a_model_to_adapt_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "recipe.yaml", {**LEAST, "proxy": {"config": {"model_type": "llama"}, "lora": {}}})
    with pytest.raises(RecipeError, match="lora adapts a trained model; give checkpoint too, or leave lora out"):
        load_recipe(path)


def test_a_section_that_is_there_is_given(tmp_path: Path) -> None:
    content = {**LEAST, "training": TRAINING, "emit": {"token_budget": "1.5B"}, "target": {"sources": {"a": 1}}}
    recipe = load_recipe(written(tmp_path / "recipe.yaml", content), ["training.seed=7", "search.update_interval=8"])
    assert recipe.required("training").seed == 7 and recipe.search.update_interval == 8
    assert recipe.required("emit").token_budget == 1_500_000_000 and recipe.required("target").weights() == {"a": 1.0}


@pytest.mark.parametrize("key", TrainingSection.model_fields)
def test_a_key_that_has_moved_is_refused_with_the_line_that_says_where_it_is_now(key: str) -> None:
    with pytest.raises(RecipeError, match=f"^recipe: search.{key}: has moved; write it as training.{key}$"):
        parse_recipe({**LEAST, "search": {key: 1}})


def _phases(*phases: dict[str, Any]) -> dict[str, Any]:
    return {"emit": {"token_budget": 10, "phases": list(phases)}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serach": {}}, "serach: unknown key; did you mean 'search'?"),
        ({"deepspeed": {"precision": "bf16"}}, "deepspeed.precision: has moved; write it as training.precision"),
        ({"sources": {"a": {"file": "a.txt"}}}, "sources.a.file: unknown key; did you mean 'files'?"),
        ({"training": {}}, "training.token_budget: this key is required"),
        ({"target": {"sources": {"c": 1}}}, "target.sources: there is no source 'c'; the sources are a, b"),
        ({"sources": {"a/b": {"files": "a.txt"}}}, "'a/b' is not a usable name; use letters"),
        ({"sources": {"a": {}}}, "give exactly one of files, dataset"),
        ({"training": {"token_budget": "2M", "sequence_length": 100}}, "does not divide shards.block_tokens 2048; choose one"),
        ({"training": {"token_budget": "5K"}}, "less than two steps of 32 x 128 tokens; raise it or lower global_batch"),
        ({"training": {"token_budget": "50K"}}, "which end before the first update of the mixture (step 16); raise it"),
        ({"emit": {"token_budget": "many"}}, "'many' is not a number; write it like 2M or 100B"),
        ({"emit": {"token_budget": -1, "seed": -1}}, "(and 1 more)"),
        (_phases({"tokens": "30%"}, {"tokens": 8}), "phases come to 11 tokens (30% = 3 + 8), but token_budget is 10"),
        (_phases({"tokens": "100%", "wieghts": {"a": 1}}), "emit.phases.0.wieghts: unknown key; did you mean 'weights'?"),
        (_phases({"tokens": "100%", "weights": {"c": 1}}), "emit.phases.0.weights: there is no source 'c'; the sources are a, b"),
        (_phases({"tokens": "100%", "weights": {"a": 1}, "mixture": "m.json"}), "are both given; leave one of them out"),
        (_phases({"tokens": "100%", "weights": {"a": 0}}), "are all 0; give at least one source a share"),
        (_phases({"tokens": "120%"}), "'120%' is not a share of the budget; write it like 80%"),
        (_phases(), "emit.phases: Tuple should have at least 1 item"),
        ({"search": {"constraints": {"floor": 2}}}, "less than or equal to 1"),
        ({"search": {"constraints": {"pinned": {"a": 0.5}, "ceiling": {"a": 0.2}}}}, "pinned.a 0.5 is outside its floor 0"),
        ({"search": {"constraints": {"groups": {"x": {"sources": ["a"]}, "y": {"sources": ["a"]}}}}}, "a is in x and in y"),
        ({"tokenizer": {"bytes": True, "eos_token": True}}, "YAML reads this name as True; put it in quotes"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe({**LEAST, **change})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("- a\n- b\n", [], "a recipe is a mapping of sections; `fastmix init DIR` writes one"),
        (
            "a: [1\n",
            [],
            "not valid YAML: line 1: YAML gives a meaning of its own to a value that begins with [; close the bracket",
        ),
        (
            "a:\n  files: *.jsonl\n",
            [],
            "line 2: YAML takes a * that is not in quotes for a reference; put the pattern in quotes: '*.jsonl'",
        ),
        (
            "a:\n  - **/*.jsonl\n",
            [],
            "line 2: YAML takes a * that is not in quotes for a reference; put the pattern in quotes: '**/*.jsonl'",
        ),
        ("files: [*.jsonl, b]\n", [], "put the pattern in quotes: '*.jsonl'"),
        ("files: [ab]*.jsonl\n", [], "put the pattern in quotes: '[ab]*.jsonl'"),
        ("a: *b\n", [], "put the pattern in quotes: '*b'"),
        ("a: %x\n", [], "a value that begins with %; put it in quotes: '%x'"),
        ("a: @x\n", [], "a value that begins with @; put it in quotes: '@x'"),
        ("a: `x`\n", [], "a value that begins with `; put it in quotes: '`x`'"),
        ("a: !x y\n", [], "a value that begins with !; put it in quotes: '!x y'"),
        ("a: {{b}}\n", [], "close the bracket, or put a text in quotes: '{{b}}'"),
        ("a:\n\tb: 1\n", [], "line 2: there is a tab where YAML wants spaces; put spaces in its place"),
        (
            "a:\n  files:x.jsonl\n  text: y\n",
            [],
            "line 3: 'files:x.jsonl' has no space after its colon; write it as 'files: x.jsonl'",
        ),
        (
            "workdir: x\nsources:\n  a:\n    files:x\n" + yaml.safe_dump({"tokenizer": {"bytes": True}}),
            [],
            "no space after its colon",
        ),
        ("a: b: c\n", [], "a value holds a colon and a space; put it in quotes: 'b: c'"),
        ("a: b\n c: d\n", [], "line 2: a key is indented where none can be; indent all keys of a section alike"),
        ("a: - b\n", [], "line 1: a list cannot begin behind its key; write each entry on a line of its own"),
        ('a: "\\d"\n', [], "line 1: a backslash in double quotes begins an escape; use single quotes"),
        ("a: 'b\n", [], "the quotes of 'b are not those of one whole text; close them"),
        ("a: b\0\n", [], "not valid YAML: unacceptable character"),
        (yaml.safe_dump(LEAST), ["training={a: 1, a: 2}"], "the value is not valid YAML; put it in quotes"),
        ("workdir: x\nworkdir: y\n", [], "line 2: 'workdir' is given twice; rename or remove one"),
        (yaml.safe_dump(LEAST), ["training"], "--set training: has no value; write it as --set section.key=value"),
        (yaml.safe_dump({**LEAST, "workdir": "run"}), ["workdir.x=1"], "'workdir' is a value, not a section"),
        (yaml.safe_dump(LEAST), ["workdir=[1"], "the value is not valid YAML; put it in quotes"),
    ],
)
def test_a_file_that_is_no_recipe_is_explained(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(written(tmp_path / "recipe.yaml", text), overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_recipe_names_the_nearest_file_or_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such recipe; `fastmix init DIR` writes one"):
        load_recipe(tmp_path / "recipe.yaml")
    written(tmp_path / "recipe.yaml", LEAST)
    with pytest.raises(RecipeError, match=r"did you mean .*recipe\.yaml\?"):
        load_recipe(tmp_path / "recipie.yaml")


def test_a_workdir_whose_path_is_not_utf8_is_refused_by_its_key(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(RecipeError, match=r"caf\\xe9/run is not UTF-8, .*; name another workdir"):
        load_recipe(written(folder / "recipe.yaml", LEAST))
    assert load_recipe(folder / "recipe.yaml", [f"workdir={tmp_path}/run"]).base == folder.resolve()


def test_phases_are_cut_out_of_the_budget_to_the_token() -> None:
    phases = [{"tokens": "33.3%"}, {"tokens": "33.4%"}, {"tokens": "33.3%"}]
    emit = parse_recipe({**LEAST, "emit": {"token_budget": 1001, "phases": phases}}).required("emit")
    assert emit.tokens_of_phases() == [333, 335, 333] and emit.needs_search
    assert emit.phases is not None and [phase.tokens for phase in emit.phases] == ["33.3%", "33.4%", "33.3%"]
