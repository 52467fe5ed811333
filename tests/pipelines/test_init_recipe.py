"""`fastmix init` proposes a recipe that loads and covers what it found, and says what it did not understand."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.recipe import Recipe
from pipelines.init_recipe import propose_recipe, write_recipe
from pipelines.inputs.files import resolve_files

CORPUS = os.environ.get("FASTMIX_CORPUS")


def put(path: Path, *records: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    elif path.name.endswith(".zst"):
        path.write_bytes(zstandard.ZstdCompressor().compress(lines))
    elif path.name.endswith(".txt"):
        path.write_text("words")
    else:
        path.write_bytes(lines)


def proposed(directory: Path, tmp_path: Path) -> Recipe:
    return load_recipe(write_recipe(directory, output=tmp_path / "made" / "recipe.yaml", force=True))


def matches(recipe: Recipe, patterns: tuple[str, ...] | None) -> set[str]:
    files, _ = resolve_files(patterns or (), base=recipe.base, where="test")
    return {os.path.realpath(file.path) for file in files}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_format_is_recognised_with_its_splits(tmp_path: Path, suffix: str) -> None:
    corpora = tmp_path / "corpora"
    for name in ("train-00000", "train-00001", "valid-00000"):
        put(corpora / "books" / f"{name}{suffix}", {"id": 1, "text": "words"})
    recipe = proposed(corpora, tmp_path)
    books = recipe.sources["books"]
    assert books.text_keys == ("text",)
    assert {Path(path).name for path in matches(recipe, books.files)} == {f"train-00000{suffix}", f"train-00001{suffix}"}
    assert {Path(path).name for path in matches(recipe, books.valid_files)} == {f"valid-00000{suffix}"}


def test_split_folders_belong_to_the_source_above_them(tmp_path: Path) -> None:
    for part in ("train/a", "train/test_of_time", "valid/b"):
        put(tmp_path / "c" / "pages" / f"{part}.txt")
    put(tmp_path / "c" / "sft" / "exam" / "train.jsonl", {"question": "q", "answer": "a"})
    put(tmp_path / "c" / "sft" / "exam" / "dev.jsonl", {"question": "q", "answer": "a"})
    recipe = proposed(tmp_path / "c", tmp_path)
    assert list(recipe.sources) == ["pages", "sft_exam"]
    assert len(matches(recipe, recipe.sources["pages"].files)) == 2
    assert len(matches(recipe, recipe.sources["pages"].valid_files)) == 1
    assert recipe.sources["sft_exam"].text_keys == ("question", "answer")
    assert recipe.sources["sft_exam"].valid_files is not None


def test_what_is_not_certain_is_said_beside_the_source(tmp_path: Path) -> None:
    put(tmp_path / "one" / "data.jsonl", {"headline": "short", "story": "much longer than that"})
    text = propose_recipe(tmp_path)
    assert "text: story" in text and "on disk; text is a guess; not read: headline" in text


def test_sequences_are_long_enough_for_examples_where_there_are_some(tmp_path: Path) -> None:
    put(tmp_path / "c" / "one" / "data.jsonl", {"text": "plain"})
    lengths = [proposed(tmp_path / "c", tmp_path).required("training")]
    put(tmp_path / "c" / "two" / "data.jsonl", {"question": "q", "answer": "a"})
    lengths.append(proposed(tmp_path / "c", tmp_path).required("training"))
    assert [training.sequence_length for training in lengths] == [128, 512]
    assert len({training.tokens_per_step for training in lengths}) == 1


def test_names_are_valid_and_unique(tmp_path: Path) -> None:
    for folder in ("größe 1", "gr__e 1", "GR__E_1", "on", "-", "x" * 70, "x" * 69, "12"):
        put(tmp_path / "c" / folder / "a.jsonl", {"text": "t"})
    recipe = proposed(tmp_path / "c", tmp_path)
    assert len(recipe.sources) == 8 and len({name.lower() for name in recipe.sources}) == 8
    assert "on" in recipe.sources and "12" in recipe.sources


def test_files_in_the_folder_itself_are_sources_by_their_names(tmp_path: Path) -> None:
    for name in ("books-00001", "books-00002", "books_old-00001", "wiki_train", "wiki_valid"):
        put(tmp_path / "c" / f"{name}.jsonl", {"text": "t"})
    recipe = proposed(tmp_path / "c", tmp_path)
    assert set(recipe.sources) == {"books", "books_old", "wiki"}
    found = {name: matches(recipe, source.files) for name, source in recipe.sources.items()}
    assert {Path(path).name for path in found["books"]} == {"books-00001.jsonl", "books-00002.jsonl"}
    assert {Path(path).name for path in found["wiki"]} == {"wiki_train.jsonl"}


def test_formats_of_one_folder_become_sources_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "c" / "mixed" / "a.jsonl", {"text": "t"})
    put(tmp_path / "c" / "mixed" / "b.parquet", {"body": "t"})
    recipe = proposed(tmp_path / "c", tmp_path)
    assert {name: source.text_keys for name, source in recipe.sources.items()} == {
        "mixed_jsonl": ("text",),
        "mixed_parquet": ("body",),
    }


def test_letters_that_globs_give_a_meaning_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("part[1].jsonl", "part1.jsonl", "what?.jsonl"):
        put(tmp_path / "c" / "odd [x]" / name, {"text": "t"})
    recipe = proposed(tmp_path / "c", tmp_path)
    (source,) = recipe.sources.values()
    assert len(matches(recipe, source.files)) == 3


def test_what_is_not_understood_is_listed_and_left_out(tmp_path: Path) -> None:
    put(tmp_path / "good" / "a.jsonl", {"text": "t"})
    put(tmp_path / "numbers" / "a.jsonl", {"n": 1, "m": 2})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "t"}' * 1000)[:30])
    (tmp_path / "broken" / "b.jsonl").write_text("{not json\n")
    (tmp_path / "broken" / "c.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jsonl").touch()
    (tmp_path / "notes.md").write_text("# evil\nworkdir: elsewhere\n")
    recipe_path = write_recipe(tmp_path, output=tmp_path / "recipe.yaml")
    comments = [line for line in recipe_path.read_text().splitlines() if line.startswith("#   ")]
    for expected in (
        "numbers/a.jsonl: no key with text; its keys are n, m",
        "broken/a.jsonl.gz: cannot be read",
        "broken/b.jsonl: cannot be read",
        "broken/c.parquet: cannot be read",
        "empty/a.jsonl: empty",
        "notes.md: not a format that fastmix reads",
    ):
        assert any(expected in line for line in comments), expected
    assert list(load_recipe(recipe_path).sources) == ["good"]


def test_the_workdir_of_an_earlier_run_and_hidden_files_are_not_searched(tmp_path: Path) -> None:
    put(tmp_path / "c" / "good" / "a.jsonl", {"text": "t"})
    put(tmp_path / "c" / "run" / "documents" / "a.parquet", {"text": "t"})
    (tmp_path / "c" / "run" / "preprocess.recipe.json").touch()
    put(tmp_path / "c" / ".cache" / "a.jsonl", {"text": "t"})
    assert list(proposed(tmp_path / "c", tmp_path).sources) == ["good"]


def test_an_existing_recipe_is_not_overwritten(tmp_path: Path) -> None:
    put(tmp_path / "good" / "a.jsonl", {"text": "t"})
    path = write_recipe(tmp_path)
    assert path == tmp_path / "recipe.yaml"
    path.write_text("mine")
    with pytest.raises(RecipeError, match=r"exists already; .*--force") as caught:
        write_recipe(tmp_path)
    assert "\n" not in str(caught.value) and path.read_text() == "mine"
    write_recipe(tmp_path, force=True)
    assert list(load_recipe(path).sources) == ["good"]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: put(path / "a.csv")])
def test_a_folder_without_corpora_is_refused_in_one_line(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "c")
    with pytest.raises(RecipeError) as caught:
        write_recipe(tmp_path / "c", output=tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value) and not (tmp_path / "recipe.yaml").exists()


@pytest.mark.skipif(CORPUS is None, reason="FASTMIX_CORPUS is not set")
def test_the_benchmark_corpus_is_covered_file_by_file(tmp_path: Path) -> None:
    corpus = Path(CORPUS or "")
    recipe = proposed(corpus, tmp_path)
    expected = json.loads((corpus / "sources.json").read_text())
    groups = {name: source for name, source in recipe.sources.items() if not name.startswith("sft_")}
    assert set(groups) == set(expected) and len(groups) == 12
    for name, source in groups.items():
        for patterns, split in ((source.files, "train"), (source.valid_files, "valid")):
            files = {os.path.realpath(path) for pattern in expected[name][split] for path in corpus.glob(pattern)}
            assert matches(recipe, patterns) == files
    exams = {name for name in recipe.sources if name.startswith("sft_")}
    assert len(exams) == 6
    assert all(recipe.sources[name].text_keys == ("question", "answer") for name in exams)
