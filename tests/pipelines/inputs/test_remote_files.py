"""Files behind URLs are found by the rules that files of this machine are."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from fastmix_data.errors import InputError
from pipelines.inputs.files import resolve_files

LINE = b'{"text": "some words"}\n'


@pytest.fixture
def store():
    memory = fsspec.filesystem("memory")
    for name in (
        "a.jsonl",
        "sub/b.JSONL",
        "._a.jsonl",
        ".cache/c.jsonl",
        "sub/.git/d.jsonl",
        "odd [x]/e[1].jsonl",
        "odd [x]/e1.jsonl",
    ):
        memory.pipe(f"/store/{name}", LINE)
    memory.pipe("/store/notes.md", b"# notes")
    yield memory
    memory.rm("/store", recursive=True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.jsonl", "odd [x]/e1.jsonl", "odd [x]/e[1].jsonl", "sub/b.JSONL"]),
        ("/**", ["a.jsonl", "odd [x]/e1.jsonl", "odd [x]/e[1].jsonl", "sub/b.JSONL"]),
        ("/*.jsonl", ["a.jsonl"]),
        ("/s*", ["sub/b.JSONL"]),
        ("/odd [x]", ["odd [x]/e1.jsonl", "odd [x]/e[1].jsonl"]),
        ("/odd [x]/*.jsonl", ["odd [x]/e1.jsonl", "odd [x]/e[1].jsonl"]),
        ("/odd [x]/e[1].jsonl", ["odd [x]/e[1].jsonl"]),
        ("/.cache/*.jsonl", [".cache/c.jsonl"]),
        ("/._a.jsonl", ["._a.jsonl"]),
    ],
)
def test_folders_and_globs_behind_a_url(store, pattern, expected):
    files, warnings = resolve_files([f"memory://store{pattern}"], base=Path("/"), where="sources.a.files")
    assert [file.name.removeprefix("memory:///store/") for file in files] == expected
    assert bool(warnings) == (pattern in ("", "/**"))


def test_a_description_behind_a_url_is_passed_over_and_said(store):
    store.pipe("/store/sub/dataset_info.json", b'{"n": 2}')
    files, warnings = resolve_files(["memory://store/sub"], base=Path("/"), where="sources.a.files", keys=("text",))
    assert [file.name.rpartition("/")[2] for file in files] == ["b.JSONL"] and "dataset_info.json" in warnings[0]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.parquet", "p.json.gz"])
def test_a_pointer_of_git_lfs_behind_a_url_is_named_as_one(store, name):
    store.pipe(f"/store/{name}", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(InputError, match=rf"{name} is a Git LFS pointer, not the data; run `git lfs pull`"):
        resolve_files(["memory://store"], base=Path("/"), where="sources.a.files")
