"""Folders, globs and `init` find the same files, by one rule for hidden files, links, workdirs and odd names."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastmix_data.errors import InputError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.sources import SourceSection
from pipelines.init_recipe import write_recipe
from pipelines.inputs.files import resolve_files, resolve_inputs
from pipelines.inputs.walk import find_files

LINE = b'{"text": "some words"}\n'


def put(path: Path, content: bytes = LINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(base: Path, *patterns: str) -> list[str]:
    return [file.name for file in resolve_files(patterns, base=base, where="sources.a.files")[0]]


def warnings(base: Path, *patterns: str) -> str:
    return " ".join(resolve_files(patterns, base=base, where="sources.a.files")[1])


@pytest.fixture(params=["folder", "glob", "init", "url"])
def found_in_data(request: pytest.FixtureRequest, tmp_path: Path):
    """Each of the ways to find the files of `data`."""

    def find() -> list[str]:
        if request.param == "init":
            recipe = load_recipe(write_recipe(tmp_path / "data", output=tmp_path / "recipe.yaml", force=True))
            return sorted(name for source in recipe.sources.values() for name in names(tmp_path, *source.files or ()))
        if request.param == "url":
            return names(tmp_path, f"file://{tmp_path}/data")
        return names(tmp_path, "data" if request.param == "folder" else "data/**/*.jsonl")

    return find


def test_hidden_files_workdirs_and_other_formats_are_no_data(tmp_path, found_in_data):
    for name in ("a.jsonl", "sub/b.jsonl"):
        put(tmp_path / "data" / name)
    for name in ("._a.jsonl", ".ipynb_checkpoints/a.jsonl", "sub/.git/c.jsonl", "__MACOSX/._b.jsonl", "run/documents/d.jsonl"):
        put(tmp_path / "data" / name, b"\0\5\x16\7 not data")
    put(tmp_path / "data" / "run" / ".preprocess.lock", b"")
    put(tmp_path / "data" / "notes.md", b"# not data")
    assert found_in_data() == ["data/a.jsonl", "data/sub/b.jsonl"]


def test_links_are_followed_once_and_loops_end(tmp_path, found_in_data):
    put(tmp_path / "data" / "a.jsonl")
    put(tmp_path / "elsewhere" / "part" / "b.jsonl")
    put(tmp_path / "elsewhere" / "c.jsonl")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere" / "part")
    (tmp_path / "data" / "0.jsonl").symlink_to("a.jsonl")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    found = found_in_data()
    assert len(found) == 3 and {Path(name).name for name in found} == {"a.jsonl", "b.jsonl", "c.jsonl"}
    assert "links in 'data' lead to what is read already" in warnings(tmp_path, "data")


def test_many_folders_that_link_to_one_another_are_entered_once_each(tmp_path):
    folders = [tmp_path / f"f{number}" for number in range(12)]
    for folder in folders:
        put(folder / "a.jsonl")
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    assert len(names(tmp_path, "**/*.jsonl")) == len(names(tmp_path, ".")) == 12


def test_a_link_counts_under_the_name_that_a_pattern_knows(tmp_path):
    put(tmp_path / "store" / "x1" / "a.jsonl")
    (tmp_path / "en").symlink_to(tmp_path / "store" / "x1")
    assert names(tmp_path, "**/en/*.jsonl") == ["en/a.jsonl"]
    # A hub's cache: the content has no ending, the link has.
    blob = put(tmp_path / "cache" / "blobs" / "0a1b")
    (tmp_path / "cache" / "snapshot").mkdir()
    (tmp_path / "cache" / "snapshot" / "train.jsonl").symlink_to(blob)
    assert names(tmp_path, "cache") == ["cache/snapshot/train.jsonl"]


@pytest.mark.parametrize("name", ["data/b.jsonl", "data/folder"])
def test_a_link_to_nowhere_is_one_line(tmp_path, name):
    put(tmp_path / "data" / "a.jsonl")
    (tmp_path / name).symlink_to("../gone")
    for pattern in ("data", "data/**", "**/*.jsonl"):
        with pytest.raises(
            InputError, match=rf"{name} is a link to \.\./gone, which is not there; put it back, or remove"
        ) as caught:
            names(tmp_path, pattern)
        assert "\n" not in str(caught.value)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("../.git/annex/objects/XX/SHA256E-s1")
    with pytest.raises(InputError, match="run `git annex get "):
        names(tmp_path, name)
    (tmp_path / "data" / "notes.md").symlink_to("gone.md")
    (tmp_path / name).unlink()
    assert names(tmp_path, "data") == ["data/a.jsonl"]


def test_only_what_the_user_wrote_is_a_pattern(tmp_path):
    base = tmp_path / "corpora [v2]*"
    for name in ("good/train-1.jsonl", "good/train-2.jsonl", "odd [x]/part[1].jsonl", "odd [x]/part1.jsonl", "what?.jsonl"):
        put(base / name)
    put(tmp_path / "corpora v" / "good" / "train-3.jsonl")
    assert names(base, "good/train-*.jsonl") == ["good/train-1.jsonl", "good/train-2.jsonl"]
    assert names(base, str(base / "good" / "train-*.jsonl")) == ["good/train-1.jsonl", "good/train-2.jsonl"]
    assert names(base, "odd [x]/*.jsonl") == ["odd [x]/part1.jsonl", "odd [x]/part[1].jsonl"]
    assert names(base, "odd [x]/part[1].jsonl") == ["odd [x]/part[1].jsonl"]
    assert names(base, "odd [[]x]/part[0-9].jsonl") == ["odd [x]/part1.jsonl"]
    assert names(base, "what?.jsonl") == ["what?.jsonl"]
    recipe = load_recipe(write_recipe(base))
    assert sum(len(names(base, *source.files or ())) for source in recipe.sources.values()) == 5
    other = load_recipe(write_recipe(base, output=tmp_path / "recipe.yaml"))
    assert sum(len(names(tmp_path, *source.files or ())) for source in other.sources.values()) == 5
    for pattern, hint in (
        ("good/tran-1.jsonl", "the nearest there is train-1.jsonl"),
        ("good/*.parquet", "there are 2 ending in .jsonl there"),
        ("bad/*.jsonl", "there is no folder .*/corpora \\[v2\\]\\*/bad; paths are relative"),
    ):
        with pytest.raises(InputError, match=hint):
            names(base, pattern)


def test_a_hidden_file_is_read_where_its_point_is_written(tmp_path):
    put(tmp_path / ".data" / "a.jsonl")
    put(tmp_path / "x" / ".b.jsonl")
    assert names(tmp_path, ".data/*.jsonl") == names(tmp_path, ".data") == [".data/a.jsonl"]
    assert names(tmp_path, "x/.b.jsonl") == names(tmp_path, "*/.*.jsonl") == ["x/.b.jsonl"]
    with pytest.raises(InputError, match=r"the folder 'x' has no .*; it has only hidden files"):
        names(tmp_path, "x")


def test_globs_match_as_a_shell_matches(tmp_path):
    for name in ("a/1.jsonl", "a/b/2.jsonl", "a/b/c/3.jsonl", "d/4.jsonl"):
        put(tmp_path / name)
    assert names(tmp_path / "d", "../a/**/*.jsonl") == ["../a/1.jsonl", "../a/b/2.jsonl", "../a/b/c/3.jsonl"]
    assert names(tmp_path, "*/*.jsonl") == ["a/1.jsonl", "d/4.jsonl"]
    assert names(tmp_path, "a/**/b/**/*.jsonl") == ["a/b/2.jsonl", "a/b/c/3.jsonl"]
    assert names(tmp_path, "*/b") == ["a/b/2.jsonl", "a/b/c/3.jsonl"]  # folders that a glob names are read whole
    assert names(tmp_path, "**") == ["a/1.jsonl", "a/b/2.jsonl", "a/b/c/3.jsonl", "d/4.jsonl"]
    assert names(tmp_path, "[ad]/./[0-9].jsonl", "a/1.jsonl") == ["a/1.jsonl", "d/4.jsonl"]
    assert find_files("~/no such file", base="/", where="").files == []


_PART = st.sampled_from(["a", "b", "c", ".h"])


@settings(max_examples=80, deadline=None)
@example(paths=[["a"]], pattern=["a", "*", "**"])
@given(
    paths=st.lists(st.lists(_PART, min_size=1, max_size=4), min_size=1, max_size=12),
    pattern=st.lists(st.sampled_from(["a", "b", "*", "**", "[ab]", "?", ".h", ".*"]), min_size=1, max_size=4),
)
def test_globs_agree_with_those_of_python(tmp_path_factory, paths, pattern):
    base = tmp_path_factory.mktemp("globs")
    for parts in paths:
        put(base.joinpath("/".join(parts), "x.jsonl"))
    expected = set()
    for match in glob.glob("/".join(pattern), root_dir=base, recursive=True):  # noqa: PTH207 (pathlib's own differs)
        if not (base / match).exists():  # `a/**` gives `a/` without looking whether there is an `a`
            continue
        # A folder that is named stands for all files in it.
        inside = os.walk(base / match) if (base / match).is_dir() else [(str((base / match).parent), [], [(base / match).name])]
        for folder, folders, files in inside:
            folders[:] = [name for name in folders if not name.startswith(".")]
            expected |= {str(Path(folder) / name) for name in files}
    found = find_files("/".join(pattern), base=str(base), where="").each_once()[0]
    assert {file.real_path for file in found} == {os.path.realpath(path) for path in expected}


def test_a_pipe_and_a_folder_that_may_not_be_read_are_one_line(tmp_path, monkeypatch):
    put(tmp_path / "data" / "a.jsonl")
    os.mkfifo(tmp_path / "data" / "b.jsonl")
    with pytest.raises(InputError, match=r"b\.jsonl is no regular file; write what it gives to a file"):
        names(tmp_path, "data")
    (tmp_path / "data" / "b.jsonl").unlink()
    put(tmp_path / "data" / "closed" / "c.jsonl")
    real = os.scandir

    def refuse(path):  # root, who may read anything, runs the tests as often as not
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"closed cannot be read \(Permission denied\); mend its permissions"):
        names(tmp_path, "data")


def test_a_link_to_a_training_file_is_no_held_out_file(tmp_path):
    put(tmp_path / "a.jsonl")
    (tmp_path / "valid.jsonl").symlink_to("a.jsonl")
    section = SourceSection.model_validate({"files": "a.jsonl", "valid_files": "valid.jsonl"})
    with pytest.raises(InputError, match=r"a\.jsonl is in files and in valid_files; narrow one of the patterns"):
        resolve_inputs({"a": section}, {}, base=tmp_path, max_partition_bytes=1)


def test_what_init_leaves_out_its_patterns_leave_out_too(tmp_path):
    for name in ("a-1.jsonl", "a-2.jsonl"):
        put(tmp_path / "data" / name)
    (tmp_path / "data" / "a-3.jsonl").symlink_to("gone")
    put(tmp_path / "more" / "b-1.json")
    put(tmp_path / "more" / "b-2.json")
    put(tmp_path / "more" / "b-3.json", b"version https://git-lfs.github.com/spec/v1\n")
    put(tmp_path / "mixed" / "c.jsonl")
    put(tmp_path / "mixed" / "D.JSONL")
    put(tmp_path / "~home" / "e.jsonl")
    path = write_recipe(tmp_path)
    found = sorted(name for source in load_recipe(path).sources.values() for name in names(tmp_path, *source.files or ()))
    assert found == [
        "data/a-1.jsonl", "data/a-2.jsonl", "mixed/D.JSONL", "mixed/c.jsonl", "more/b-1.json", "more/b-2.json", "~home/e.jsonl",
    ]  # fmt: skip
    assert "data/a-3.jsonl: " in path.read_text() and "is a link to gone, which is not there" in path.read_text()
