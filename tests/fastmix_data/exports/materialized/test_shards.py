from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from click.testing import CliRunner, Result
from small_disk import small_disk

import pipelines.export.run as export_run
from fastmix_data.audit.verify import verify
from fastmix_data.errors import FastmixError, InputError, MismatchError, RecipeError
from fastmix_data.exports.part_tokens import read_part
from fastmix_data.loader import IGNORED_LABEL, ManifestDataset
from fastmix_data.loading.source_meter import SourceMeter
from fastmix_data.machine import Workers
from fastmix_data.manifest.continuation import continue_after
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.written_order import order_of
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.workdir import Workdir
from pipelines.cli.main import main
from pipelines.export.run import export

SHARD_BYTES = 40_000  # a few dozen sequences
ENDS = {"books": [410, 333], "code": [2000], "notes": [33, 18, 17, 1]}  # `notes` ends in blocks of one label, and of none


@pytest.fixture(params=[(), ("code",)], ids=["plain", "masked"])
def manifest(make_catalog: Callable[..., Catalog], request: pytest.FixtureRequest) -> Manifest:
    catalog = make_catalog(ENDS, masked=request.param)
    mixture = Mixture(weights={"books": 0.6, "code": 0.35, "notes": 0.05})
    emit = EmitSection(token_budget=2600, max_epochs=9)
    return emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")


def _materialize(manifest: Manifest, directory: Path, *, length: int | None = None, workers: int = 1) -> Path:
    export(
        manifest.directory,
        to="shards",
        directory=directory,
        max_file_bytes=SHARD_BYTES,
        sequence_length=length,
        workers=Workers(workers),
    )
    return directory


def _files(directory: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file() and ".fastmix" not in path.parts)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def _equal(found: Iterable[dict[str, torch.Tensor]], expected: Iterable[dict[str, torch.Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("length", [16, 8, 4])
def test_the_loader_yields_the_batches_of_the_manifest_that_was_materialized(
    manifest: Manifest, tmp_path: Path, length: int
) -> None:
    out = _materialize(manifest, tmp_path / "out", length=length)
    written = load_manifest(out)
    assert written.num_shards > 3 and len(written.parts) > written.num_shards  # short sequences in the middle of shards
    assert written.served_sources == manifest.served_sources == manifest.sources
    for batch_size, world_size in ((None, 1), (7, 1), (3, 2)):
        options = {"batch_size": batch_size, "world_size": world_size, "keep_rest": True}
        for rank in range(world_size):
            given = ManifestDataset(manifest.directory, sequence_length=length, rank=rank, **options)
            assert _equal(ManifestDataset(out, rank=rank, **options), given)
    figures = []
    for path in (manifest.directory, out):
        dataset = ManifestDataset(path, sequence_length=length, batch_size=7)
        meter = SourceMeter(dataset)
        for batch in dataset:
            meter.update(batch)
        figures.append(meter.log(0))
    assert figures[0] == figures[1] and {"source_tokens/books", "source_epochs/notes"} <= figures[0].keys()
    report = verify(out, quiet=True)
    assert report.ok and report.num_shards == written.num_shards
    assert load_manifest(out / "origin").sha256 == manifest.sha256


def test_shorter_sequences_are_cut_from_the_written_ones_in_their_order(manifest: Manifest, tmp_path: Path) -> None:
    out = _materialize(manifest, tmp_path / "out")
    labels_NT = torch.stack([item["labels"] for item in ManifestDataset(out)]).reshape(-1, 8)
    shorter_NT = torch.stack([item["labels"] for item in ManifestDataset(out, sequence_length=8)])
    sources_N = torch.stack([item["source"] for item in ManifestDataset(out)])
    # An end without any label is no sequence; in sources with masks a sequence without loss is one.
    if manifest.example_tokens is None:
        kept_N = (labels_NT != IGNORED_LABEL).any(dim=1)
        assert torch.equal(shorter_NT, labels_NT[kept_N])
        shorter_sources_N = torch.stack([item["source"] for item in ManifestDataset(out, sequence_length=8)])
        assert torch.equal(shorter_sources_N, sources_N.repeat_interleave(2)[kept_N])
    else:
        assert torch.equal(shorter_NT[shorter_NT != IGNORED_LABEL], labels_NT[labels_NT != IGNORED_LABEL])


def test_webdataset_reads_the_order_and_the_sources_from_the_shards_alone(manifest: Manifest, tmp_path: Path) -> None:
    out = _materialize(manifest, tmp_path / "out", length=8)
    last = load_manifest(out).num_shards - 1
    urls = f"{out}/shards/run-{{000000..{last:06d}}}.tar"
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    items = list(ManifestDataset(manifest.directory, sequence_length=8))
    assert np.array_equal([sample["tokens.npy"][:-1] for sample in samples], torch.stack([item["tokens"] for item in items]))
    assert [int(sample["__key__"].rsplit("-", 1)[1]) for sample in samples] == [int(item["source"]) for item in items]
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    # Labels are the next tokens, but where the mask says otherwise; without masks, padding at ends is not marked.
    if manifest.example_tokens is not None:
        labels = [
            np.where(sample["loss_mask.npy"] == 1, sample["tokens.npy"].astype(np.int64), IGNORED_LABEL)[1:] for sample in samples
        ]
        assert np.array_equal(labels, torch.stack([item["labels"] for item in items]))


def test_an_export_of_it_keeps_the_order_and_names_the_shards_where_they_lie(manifest: Manifest, tmp_path: Path) -> None:
    out = _materialize(manifest, tmp_path / "out")
    export(out, to="webdataset", directory=tmp_path / "wds")
    urls = (tmp_path / "wds" / "shards.txt").read_text().split()
    assert urls == [str(path) for path in sorted((out / "shards").iterdir())]
    # Flat formats take the parts one after another, without the padding.
    written = load_manifest(out)
    tokens = np.concatenate([read_part(written, part, root=out).tokens_T for part in written.parts])
    located = order_of(manifest, sequence_length=16).locate(np.arange(sum(part.num_blocks for part in written.parts)))
    items = zip(ManifestDataset(manifest.directory), located.num_labels_N.tolist(), strict=True)
    assert tokens.tolist() == [token for item, num_labels in items for token in item["tokens"][: num_labels + 1].tolist()]
    with pytest.raises(MismatchError, match="order of the run already; read or copy them"):
        _materialize(load_manifest(out), tmp_path / "again")
    with pytest.raises(RecipeError, match=r"hold the order of seed 0, .*; leave the seed out"):
        ManifestDataset(out, seed=1)


@pytest.mark.parametrize("manifest", [()], indirect=True, ids=["plain"])
def test_a_run_in_phases_and_the_rest_of_one_are_materialized_in_their_order(manifest: Manifest, tmp_path: Path) -> None:
    phases = [{"tokens": 900, "weights": {"books": 1}}, {"tokens": 1700, "weights": {"books": 1, "code": 2, "notes": 0.1}}]
    emit = EmitSection.model_validate({"token_budget": 2600, "phases": phases, "max_epochs": 9})
    catalog = load_catalog(Workdir(manifest.root_path).catalog)
    phased = emit_manifest(catalog, None, emit=emit, directory=tmp_path / "phased")
    # Within an epoch, and within the second phase.
    place = continue_after(phased, 1200, sequence_length=8)
    rest = emit_manifest(catalog, None, emit=emit, directory=tmp_path / "rest", after=place)
    assert rest.starts_within_an_epoch
    for given, length in ((phased, 16), (phased, 8), (rest, None)):
        out = _materialize(given, tmp_path / f"{given.directory.name}-{length}", length=length)
        written = load_manifest(out)
        assert _equal(ManifestDataset(out), ManifestDataset(given.directory, sequence_length=length))
        assert verify(out, quiet=True).ok and not written.starts_within_an_epoch and written.after is None
    # That is the way of a run that goes on to other trainers.
    with pytest.raises(MismatchError, match="only fastmix's loader knows; `fastmix materialize` it first, and export what"):
        export(rest.directory, to="olmo", directory=tmp_path / "no")
    exported = export(out, to="olmo", directory=tmp_path / "olmo")
    assert sum("label at the end of each is the next one's first token" in remark for remark in exported.remarks) == 1
    (table,) = (tmp_path / "olmo").rglob("*.csv.gz")
    starts = {int(line.split(",")[0]) for line in gzip.decompress(table.read_bytes()).decode().splitlines()}
    assert starts == set(_starts_of_parts(written))
    with pytest.raises(InputError, match=r"does not know what of its sources is left; name .*origin.* --sequence-length 8"):
        continue_after(written, 1600)


def _starts_of_parts(written: Manifest) -> Iterator[int]:
    """Of every sequence in a flat file, which leaves padding out."""
    before = 0
    for part in written.parts:
        yield from range(before, before + part.num_tokens, written.block_tokens)
        before += part.num_tokens


def test_a_length_that_does_not_divide_the_blocks_is_refused_before_anything_is_written(
    manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="sequence_length 12 does not divide"):
        _materialize(manifest, tmp_path / "out", length=12)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("manifest", [()], indirect=True, ids=["plain"])
def test_the_command_is_an_export_by_another_name(manifest: Manifest, tmp_path: Path) -> None:
    def run(*options: str) -> Result:
        return CliRunner().invoke(main, ["materialize", str(manifest.path), "--out", str(tmp_path / "out"), *options])

    written = json.loads(run("--sequence-length", "8", "--max-shard-bytes", "40KiB", "--json").stdout)
    assert written["format"] == "shards" and written["files"][0] == str(tmp_path / "out" / "manifest.json")
    assert load_manifest(tmp_path / "out").block_tokens == 8 and len(list((tmp_path / "out" / "shards").iterdir())) > 3
    refused = run()
    assert refused.exit_code == 2 and "another max_file_bytes 40960, now 268435456; sequence_length 8, now None" in refused.stderr
    assert refused.stderr.count("\n") == 1 and run("--replace").exit_code == 0


STOPPED = """
import os, signal, sys
from pathlib import Path
from pipelines.export.run import export
left, fsync = [int(sys.argv[4])], os.fsync
def killed_in_the_end(descriptor):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    fsync(descriptor)
os.fsync = killed_in_the_end
export(Path(sys.argv[1]), to="shards", directory=Path(sys.argv[2]), max_file_bytes=int(sys.argv[3]))
"""


@pytest.mark.parametrize("manifest", [()], indirect=True, ids=["plain"])
def test_killed_runs_that_go_on_and_two_workers_write_the_bytes_of_one_run(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _files(_materialize(manifest, tmp_path / "once"))
    command = [sys.executable, "-c", STOPPED, str(manifest.directory), str(tmp_path / "killed"), str(SHARD_BYTES)]
    # While the second and third shards are written, and before what names them is.
    for syncs_before_kill in ("6", "6", "10"):
        assert subprocess.run([*command, syncs_before_kill]).returncode == -signal.SIGKILL
        assert list(tmp_path.rglob("*.partial")) and not (tmp_path / "killed" / "manifest.json").exists()
    assert subprocess.run([*command, "1000"]).returncode == 0
    assert _files(tmp_path / "killed") == expected
    monkeypatch.setattr(export_run, "_WORTH_WORKERS", 0)
    assert _files(_materialize(manifest, tmp_path / "spread", workers=2)) == expected


@pytest.mark.parametrize("manifest", [()], indirect=True, ids=["plain"])
def test_a_full_disk_is_told_and_the_same_command_goes_on(manifest: Manifest, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, size="96k") as make_room:
        with pytest.raises(FastmixError, match="no space left on the disk; free some and run the same command again"):
            _materialize(manifest, disk / "out")
        assert list((disk / "out").rglob("*.tar")) and not list(disk.rglob("*.partial"))
        make_room()
        assert _files(_materialize(manifest, disk / "out")) == _files(_materialize(manifest, tmp_path / "once"))
