from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

import pipelines.export.run as export_run
from fastmix_data.errors import CorruptArtefactError, MismatchError, RecipeError
from fastmix_data.exports.format import ExportRequest, OnTokens, Receipt
from fastmix_data.exports.formats import export_format
from fastmix_data.exports.webdataset import _PlacePart
from fastmix_data.machine import Workers
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.exports import EXPORT_NAMES
from fastmix_data.recipe.recipe import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from pipelines.export.formats_table import formats_table, known_format
from pipelines.export.run import export

MakeCatalog = Callable[..., Catalog]


def _files(directory: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file() and ".fastmix" not in path.parts)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_exporting_again_does_nothing_and_another_manifest_is_refused(
    mixed_catalog: Catalog, mixed_manifest: Manifest, tmp_path: Path
) -> None:
    directory = tmp_path / "out"
    assert export(mixed_manifest.directory, to="webdataset", directory=directory).did_work
    again = export(mixed_manifest.directory, to="webdataset", directory=directory)
    assert not again.did_work and "nothing to do" in again.message
    with pytest.raises(MismatchError, match="files reference, now copy; name another folder, or give --replace"):
        export(mixed_manifest.directory, to="webdataset", directory=directory, files="copy")
    mixture = Mixture(weights={"books": 0.5, "code": 0.5, "single": 0.0})
    other = emit_manifest(mixed_catalog, mixture, emit=EmitSection(token_budget=900), directory=mixed_catalog.root / "other")
    with pytest.raises(MismatchError, match="another manifest_sha256"):
        export(other.directory, to="webdataset", directory=directory)
    mine = directory / "notes.txt"
    mine.write_text("kept")
    assert export(other.directory, to="webdataset", directory=directory, replace=True).did_work
    export(other.directory, to="webdataset", directory=tmp_path / "fresh")
    mine_too, fresh = _files(directory), _files(tmp_path / "fresh")
    assert mine_too.pop("notes.txt") == b"kept" and mine_too.keys() == fresh.keys()


def test_a_folder_of_something_else_is_left_alone(mixed_manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    for replace in (False, True):
        with pytest.raises(MismatchError, match="no export of fastmix; name an empty or new folder with --out"):
            export(mixed_manifest.directory, to="webdataset", directory=tmp_path / "out", replace=replace)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_shard_that_is_not_what_it_was_is_named_and_nothing_is_finished(
    mixed_catalog: Catalog, mixed_manifest: Manifest, tmp_path: Path, damage: str
) -> None:
    shard = mixed_catalog.root / mixed_manifest.parts[-1].path
    intact = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(intact[:700] + bytes([intact[700] ^ 1]) + intact[701:])
    with pytest.raises(CorruptArtefactError, match=f"{shard.name}.*{'is missing' if damage == 'missing' else 'changed since'}"):
        export(mixed_manifest.directory, to="webdataset", directory=tmp_path / "out")
    assert not (tmp_path / "out" / "shards.txt").exists()
    shard.write_bytes(intact)
    assert export(mixed_manifest.directory, to="webdataset", directory=tmp_path / "out").did_work


def test_a_stopped_export_goes_on_and_one_on_workers_is_the_same(
    mixed_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, stopped, threads, spread = (tmp_path / name for name in ("once", "stopped", "threads", "spread"))
    export(mixed_manifest.directory, to="webdataset", directory=once, files="copy")
    placed: list[str] = []
    run = _PlacePart.run

    def run_two(task: _PlacePart, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        if len(placed) == 2:
            raise KeyboardInterrupt
        placed.append(task.name)
        return run(task, request, on_tokens)

    monkeypatch.setattr(_PlacePart, "run", run_two)
    with pytest.raises(KeyboardInterrupt):
        export(mixed_manifest.directory, to="webdataset", directory=stopped, files="copy")
    monkeypatch.undo()
    assert not (stopped / "shards.txt").exists()
    monkeypatch.setattr(export_run, "_WORTH_WORKERS", 0)
    export(mixed_manifest.directory, to="webdataset", directory=stopped, files="copy", workers=Workers(2))
    export(mixed_manifest.directory, to="webdataset", directory=threads, files="copy", workers=Workers(2))
    monkeypatch.setattr(type(export_format("webdataset")), "runs_in", "processes")
    export(mixed_manifest.directory, to="webdataset", directory=spread, files="copy", workers=Workers(2))
    expected = {name: content for name, content in _files(once).items() if name.endswith(".tar")}
    for directory in (stopped, threads, spread):
        assert {name: content for name, content in _files(directory).items() if name.endswith(".tar")} == expected


def test_in_threads_the_first_error_ends_the_other_tasks_at_their_next_news(
    mixed_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = Event(), []

    def run(task: _PlacePart, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        if task.name == first:
            begun.wait()
            raise CorruptArtefactError(request.directory, "broke", "mend it")
        begun.set()
        with contextlib.suppress(TimeoutError):
            for _ in range(500):  # five seconds, were it not ended
                time.sleep(0.01)
                on_tokens(0)
            ended.append(task.name)
        return {"files": []}

    monkeypatch.setattr(_PlacePart, "run", run)
    monkeypatch.setattr(export_run, "_WORTH_WORKERS", 0)
    request = ExportRequest(mixed_manifest, mixed_manifest.root_path, tmp_path / "out", files="copy")
    first = export_format("webdataset").tasks(request)[0].name
    with pytest.raises(CorruptArtefactError, match="broke; mend it"):
        export(mixed_manifest.directory, to="webdataset", directory=tmp_path / "out", files="copy", workers=Workers(2))
    assert not ended and not (tmp_path / "out" / "shards.txt").exists()


def test_what_a_killed_task_left_goes_and_a_users_own_partial_file_stays(mixed_manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    monkey = export(mixed_manifest.directory, to="webdataset", directory=out, files="copy")
    tar = next(out.rglob("*.tar"))
    (out / ".fastmix" / "export.json").unlink()
    left, mine = tar.with_name(f"{tar.name}.4711.partial"), tar.with_name("download.partial")
    left.touch(), mine.touch()
    assert monkey.did_work and export(mixed_manifest.directory, to="webdataset", directory=out, files="copy").did_work
    assert mine.exists() and not left.exists()


def test_a_folder_that_holds_the_manifest_or_its_shards_is_never_written_over(mixed_manifest: Manifest, tmp_path: Path) -> None:
    export(mixed_manifest.directory, to="shards", directory=tmp_path / "written")
    before = _files(tmp_path / "written")
    for given, directory in ((tmp_path / "written", tmp_path / "written"), (mixed_manifest.directory, mixed_manifest.root_path)):
        with pytest.raises(MismatchError, match="its shards lie; name another folder with --out"):
            export(given, to="webdataset", directory=directory, replace=True)
    assert _files(tmp_path / "written") == before


def test_every_format_that_a_recipe_may_name_is_in_the_table() -> None:
    contents, shown = formats_table()
    assert tuple(contents["formats"]) == EXPORT_NAMES and all(f"{name}: read by" in shown for name in EXPORT_NAMES)


def test_an_unknown_format_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean webdataset"):
        known_format("webdatset")
