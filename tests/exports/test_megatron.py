from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmix_data.atomic_files import read_json
from fastmix_data.errors import FastmixError
from fastmix_data.exports.format import ExportRequest, Files
from fastmix_data.exports.nvidia import corpus
from fastmix_data.exports.part_tokens import read_part
from fastmix_data.exports.pools import Pool, pools_of
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, load_catalog
from pipelines.export.run import export
from tests.exports.other_readers import read_with

FILES: tuple[Files, ...] = ("reference", "hardlink", "copy")
BLOCK = 16
EOS = 500


@pytest.fixture
def manifest(large_shards_manifest: Manifest) -> Manifest:
    return large_shards_manifest


def tokens_of(manifest: Manifest, pool: Pool) -> list[int]:
    return np.concatenate([read_part(manifest, part, root=manifest.root_path).tokens_T for part in pool.parts]).tolist()


def tokens_in(files: list[dict[str, Any]]) -> Counter[int]:
    return Counter(chain.from_iterable(chain.from_iterable(file["sequences"] for file in files)))


def pool_of(pools: list[Pool], file: dict[str, Any]) -> Pool:
    name = Path(file["prefix"]).name.rsplit("-", 1)[0]
    return next(pool for pool in pools if pool.name == name)


@pytest.mark.parametrize("files", ["reference", "copy"])
def test_megatron_reads_the_tokens_of_a_manifest_each_as_often_as_it_says(
    manifest: Manifest, tmp_path: Path, files: Files
) -> None:
    export(manifest.directory, to="megatron", directory=tmp_path / "out", files=files)
    read, pools = read_with("megatron", tmp_path / "out", package="megatron"), pools_of(manifest)
    assert {pool.name for pool in pools} >= {"books", "books.rest", "code", "code.rest"}
    # Its indexed data sets hold exactly the pools' tokens, and its weights are the manifest's shares.
    for pool in pools:
        found = [file for file in read["files"] if pool_of(pools, file) is pool]
        assert {file["dtype"] for file in found} == {"uint16"}
        assert tokens_in(found) == Counter(tokens_of(manifest, pool))
    owners = [pool_of(pools, file) for file in read["files"]]
    for source in manifest.sources:
        weights = [weight for pool, weight in zip(owners, read["weights"], strict=True) if pool.source == source.name]
        assert sum(weights) / sum(read["weights"]) == source.share
    # Its blend reads every token of a file as often as the pool is repeated, but for a window or two.
    for number, (pool, file) in enumerate(zip(owners, read["files"], strict=True)):
        counts = Counter(chain.from_iterable(tokens for dataset, tokens, _ in read["train"] if dataset == number))
        wanted = tokens_in([file] * pool.repeats)
        assert max((counts - wanted).total(), (wanted - counts).total()) < 3 * BLOCK
    assert manifest.num_tokens - len(read["files"]) * BLOCK <= len(read["train"]) * BLOCK < manifest.num_tokens
    catalog = load_catalog(manifest.root_path / "catalog.parquet")
    held_out = Counter(chain.from_iterable(read["valid"]))
    stored = [catalog.open(row).tokens_NT[:, :-1].ravel().tolist() for row in catalog.rows if row.split == "valid"]
    assert held_out <= Counter(chain.from_iterable(stored))
    assert held_out.total() == 3 * 2 * BLOCK  # a source's 40 tokens make two windows
    sequences = {Path(file["prefix"]).name: file["sequences"] for file in read["files"]}
    if files == "reference":
        # A shard's blocks, of which each is a window: the manifest's own sequences.
        assert {len(tokens) for tokens in sequences["code-00000"]} == {BLOCK}
        windows = {tuple(tokens) for _, tokens, _ in read["train"]}
        assert sum(tuple(tokens) in windows for tokens in sequences["code-00000"]) > 0.98 * len(sequences["code-00000"])
    else:
        documents = sequences["books-00000"]
        assert documents[0][-1] == EOS and len(documents[0]) == EOS and sum(EOS in tokens for tokens in documents) == 1


def test_megatron_reads_ids_of_more_than_two_bytes(make_catalog: Callable[..., Catalog], tmp_path: Path) -> None:
    catalog = make_catalog({"books": [9000], "single": [16]}, shard_blocks=300, dtype="<u4")
    mixture, emit = Mixture(weights={"books": 18000 / 18032, "single": 32 / 18032}), EmitSection(token_budget=18032, max_epochs=2)
    manifest = emit_manifest(catalog, mixture, emit=emit, directory=catalog.root / "manifest")
    export(manifest.directory, to="megatron", directory=tmp_path / "out")
    # Two files are shards, the last is too small for that and is written.
    assert [path.is_symlink() for path in sorted((tmp_path / "out" / "train").glob("*.bin"))] == [True, True, False]
    read, pools = read_with("megatron", tmp_path / "out", package="megatron"), pools_of(manifest)
    # The format's own type, in which these ids are positive as they should be.
    assert {file["dtype"] for file in read["files"]} == {"int32"}
    wanted = Counter(chain.from_iterable(tokens_of(manifest, pool) for pool in pools))
    assert tokens_in(read["files"]) == wanted and min(wanted) > 65_535
    windows = [tokens for _, tokens, _ in read["train"]]
    assert len(windows) > 1100 and set(chain.from_iterable(windows)) <= wanted.keys()


def test_a_bin_is_the_shard_itself_unless_it_is_copied_or_too_small(manifest: Manifest, tmp_path: Path) -> None:
    for files in FILES:
        export(manifest.directory, to="megatron", directory=tmp_path / files, files=files)
    linked, hard, copied = ({path.name: path for path in (tmp_path / files / "train").glob("*.bin")} for files in FILES)
    shards = {name for name, path in linked.items() if path.is_symlink()}
    assert "books-00000.bin" in shards and "single-00000.bin" not in shards and shards < linked.keys()
    assert {name for name, path in hard.items() if path.samefile(linked[name])} == shards
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in copied.values())
    assert (tmp_path / "reference/train/books-00000.idx").read_bytes() == (
        tmp_path / "hardlink/train/books-00000.idx"
    ).read_bytes()


def test_converted_files_are_no_larger_than_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    export(manifest.directory, to="megatron", directory=tmp_path / "out", files="copy", max_file_bytes=5000)
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "train").glob("*.bin")]
    assert max(sizes) <= 5000
    assert sum(sizes) == 2 * sum(pool.num_tokens for pool in pools_of(manifest))


def test_masks_that_megatron_does_not_read_are_said_with_the_tokens_they_are_of(
    masked_manifest: Manifest, tmp_path: Path
) -> None:
    said = " ".join(export(masked_manifest.directory, to="megatron", directory=tmp_path / "out").remarks)
    tokens = next(source.num_tokens for source in masked_manifest.sources if source.name == "code")
    assert f"GPTDataset has no masks: every one of the {tokens} tokens of code carries loss" in said and "whole windows" in said


def test_what_the_format_cannot_hold_is_refused_and_a_missing_catalog_said(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FastmixError, match=r"splits a blend at blanks; name a folder without any with --out"):
        export(manifest.directory, to="megatron", directory=tmp_path / "a folder")
    monkeypatch.setattr(corpus, "_MOST_FILES", 3)
    with pytest.raises(FastmixError, match=r"makes \d+ files, and a blend holds 3; export with --files copy"):
        export(manifest.directory, to="megatron", directory=tmp_path / "many")
    (manifest.root_path / "catalog.parquet").unlink()
    monkeypatch.undo()
    assert "no validation split" in " ".join(export(manifest.directory, to="megatron", directory=tmp_path / "alone").remarks)
    assert read_json(tmp_path / "alone" / "splits.json")["valid"] is None
    huge = ExportRequest(dataclasses.replace(manifest, vocab_size=1 << 32), manifest.root_path, tmp_path / "huge")
    with pytest.raises(FastmixError, match=r"does not fit into signed 32-bit integers.*export it in another format"):
        corpus.corpus_of(huge)
