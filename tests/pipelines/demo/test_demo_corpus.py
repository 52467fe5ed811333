"""The demo's corpus: several different sources from this Python installation alone, the same every time."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard

from fastmix_data.errors import InputError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.recipe import Recipe
from pipelines.demo import collect
from pipelines.demo.collect import Document
from pipelines.demo.corpus import write_sample_corpus

SMALL = 150_000


def read_texts(path: Path) -> list[str]:
    if path.name.endswith(".txt"):
        return [path.read_text()]
    if path.name.endswith(".parquet"):
        texts: list[str] = pq.read_table(path)["text"].to_pylist()
        return texts
    content = path.read_bytes()
    if path.name.endswith(".gz"):
        content = gzip.decompress(content)
    if path.name.endswith(".zst"):
        content = zstandard.ZstdDecompressor().decompress(content)
    return [json.loads(line)["text"] for line in content.splitlines()]


def read_source(recipe: Recipe, name: str, *, valid: bool = False) -> list[str]:
    source = recipe.sources[name]
    patterns = (source.valid_files if valid else source.files) or ()
    paths = sorted(path for pattern in patterns for path in recipe.base.glob(pattern))
    return [text for path in paths for text in read_texts(path)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_corpus(tmp_path_factory.mktemp("corpus"), source_characters=SMALL).parent


@pytest.fixture(scope="module")
def recipe(directory: Path) -> Recipe:
    return load_recipe(directory / "recipe.yaml")


def test_there_are_at_least_five_sources_in_all_formats_and_junk_among_them(directory: Path, recipe: Recipe) -> None:
    assert len(recipe.sources) >= 5 and "junk" in recipe.sources
    for name in recipe.sources:
        texts = read_source(recipe, name)
        assert len(texts) >= 10 and all(text.strip() for text in texts)
        assert sum(map(len, texts)) <= SMALL + 40_000
    suffixes = {"".join(path.suffixes) for path in directory.rglob("*") if path.is_file()}
    assert {".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"} <= suffixes and any(suffix.endswith(".txt") for suffix in suffixes)


def test_the_target_is_many_modules_and_shares_no_paragraph_with_a_source(recipe: Recipe) -> None:
    def paragraphs(texts: list[str]) -> set[str]:
        return {
            part for text in texts for part in (" ".join(part.split()) for part in re.split(r"\n\s*\n", text)) if len(part) >= 60
        }

    assert not recipe.target.sources
    (target,) = recipe.target.files.values()
    modules = [text for pattern in target.files for path in recipe.base.glob(pattern) for text in read_texts(path)]
    wanted = paragraphs(modules)
    assert len(modules) >= 12 and len(wanted) > 1_000
    for name in recipe.sources:
        for valid in (False, True):
            assert not wanted & paragraphs(read_source(recipe, name, valid=valid)), name
    assert any('"""' in text and "\n    return " in text for text in modules)


def test_held_out_files_share_no_document_with_the_rest(recipe: Recipe) -> None:
    for name in ("topics", "docstrings"):
        held_out = read_source(recipe, name, valid=True)
        assert len(held_out) >= 4
        assert not set(held_out) & set(read_source(recipe, name))


def test_the_target_leaves_out_modules_that_say_what_a_source_says() -> None:
    module = collect.scientific_modules(SMALL, unlike=[])[0]
    quoted = Document("quoted", max(module.text.split("\n\n"), key=len))
    others = collect.scientific_modules(SMALL, unlike=[quoted])
    assert others and module not in others


def test_equal_installations_give_equal_bytes(directory: Path, tmp_path: Path) -> None:
    write_sample_corpus(tmp_path, source_characters=SMALL)
    made = {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert made == again


def test_writing_again_leaves_equal_files_alone(directory: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    write_sample_corpus(directory, source_characters=SMALL)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_code_and_docstrings_share_no_text() -> None:
    code, docstrings = collect.library_code_and_docstrings(SMALL)
    body = "\n".join(document.text for document in code)
    paragraphs = [part for document in docstrings for part in document.text.split("\n\n") if len(part) > 200]
    assert len(paragraphs) > 50
    assert sum(part in body for part in paragraphs) <= len(paragraphs) // 50


def test_topics_and_licences_say_no_paragraph_twice() -> None:
    for documents in (collect.help_topics(10**7), collect.licences(10**7)):
        paragraphs = [" ".join(part.split()) for document in documents for part in document.text.split("\n\n")]
        long = [part for part in paragraphs if len(part) > 200]
        assert len(long) == len(set(long))


def test_docstrings_are_cut_out_and_the_rest_stays() -> None:
    rest = 'X = 1  # kept\n\n\ndef f(a):\n    return a\x0c\n\n\nclass C:\n    def g(self): "inline"\n'
    source = '"""Module."""\n' + rest.replace("f(a):\n", 'f(a):\n    """Say\n\n    more."""\n')
    tree = collect._parse(source)
    assert tree is not None
    cut = collect._without_docstrings(source, list(collect._documented(tree, "m")))
    assert cut == rest
    assert [name for name, _ in collect._documented(tree, "m")] == ["m", "m.f", "m.C", "m.C.g"]


def test_an_origin_that_is_absent_is_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent: list[Document] = []
    monkeypatch.setattr(collect, "help_topics", lambda limit: absent)
    recipe = load_recipe(write_sample_corpus(tmp_path, source_characters=SMALL))
    assert "topics" not in recipe.sources and recipe.target.files
    assert capsys.readouterr().err.count("left out topics") == 1
    assert "topics" in (tmp_path / "recipe.yaml").read_text()


def test_an_installation_with_too_little_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for origin in ("help_topics", "c_headers", "licences", "package_descriptions"):
        monkeypatch.setattr(collect, origin, lambda limit: [])
    with pytest.raises(InputError, match="nothing for topics, headers, descriptions, licences") as caught:
        write_sample_corpus(tmp_path, source_characters=SMALL)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_an_installation_without_a_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "scientific_modules", lambda limit, unlike: [])
    with pytest.raises(InputError, match="nothing for target"):
        write_sample_corpus(tmp_path, source_characters=SMALL)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").mkdir(parents=True)
    (tmp_path / "junk" / "mine.txt").write_text("not part of it")
    with pytest.raises(InputError, match=r"mine\.txt: not a file of this sample corpus.*choose an empty folder"):
        write_sample_corpus(tmp_path, source_characters=SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["junk", "mine.txt"]
