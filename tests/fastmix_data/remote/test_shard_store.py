"""Shards in S3 are read as those on a disk are, with few requests and few bytes, and what goes wrong is one line."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmix_data.errors import FastmixError
from fastmix_data.remote import shard_store
from fastmix_data.remote.object_store import ObjectStore
from fastmix_data.remote.shard_store import ShardStore
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.shards.sequences import SequenceReader
from tests.local_s3 import LocalS3

MakeCatalog = Callable[..., Catalog]


def in_s3(catalog: Catalog, s3: LocalS3, tmp_path: Path, *, cache_bytes: int = 1 << 20, bucket: str = "corpora") -> Catalog:
    """The catalog with its shards copied to S3; what was known of the store before is forgotten, as by a new process."""
    shard_store._opened.cache_clear()
    s3.upload(catalog.root / "shards", "corpora", tmp_path.name)
    return catalog.read_from(ShardStore(f"s3://{bucket}/{tmp_path.name}", str(tmp_path / "cache"), cache_bytes))


def reader_of(catalog: Catalog, *, window: int = 1, length: int = 8) -> SequenceReader:
    return SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=length, window=window)


def everything(reader: SequenceReader) -> tuple[np.ndarray, np.ndarray]:
    counts_K = reader.num_sequences_K
    return np.repeat(np.arange(len(counts_K)), counts_K), np.concatenate([np.arange(count) for count in counts_K])


@pytest.mark.parametrize("url", ["s3", "folder"])
def test_sequences_of_a_store_are_those_of_the_files_and_come_from_the_cache_the_second_time(
    make_catalog: MakeCatalog, s3: LocalS3, tmp_path: Path, url: str
) -> None:
    catalog = make_catalog({"plain": [500, 90], "examples": [300]}, masked=["examples"])
    stored = in_s3(catalog, s3, tmp_path)
    if url == "folder":
        stored = catalog.read_from(ShardStore(str(catalog.root / "shards"), str(tmp_path / "cache"), 1 << 20))
    for length, window in ((8, 1), (16, 1), (8, 7)):
        chosen = everything(reader_of(catalog, length=length))
        expected = reader_of(catalog, length=length).read(*chosen)
        for _ in range(2):
            before = stored.store.opened.objects.traffic
            found = reader_of(stored, length=length, window=window).read(*chosen)
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
        assert stored.store.opened.objects.traffic == before


@pytest.mark.parametrize("window", [1, 16])
def test_no_more_than_the_sequences_are_fetched_and_windows_in_few_requests(
    make_catalog: MakeCatalog, s3: LocalS3, tmp_path: Path, window: int
) -> None:
    # Blocks of 4,096 tokens, each with 1 KiB around it: neighbours may be fetched with what lies between them.
    catalog = make_catalog({"a": [300_000]}, block_tokens=4096, shard_blocks=40, dtype="<u4")
    stored = in_s3(catalog, s3, tmp_path, cache_bytes=1 << 24)
    reader = reader_of(stored, length=1024, window=window)
    for numbers in np.random.default_rng(0).permutation(reader.num_sequences_K[0] // 16 * 16).reshape(-1, 16):
        reader.read(np.zeros(16, np.int64), numbers)
    tokens = reader.num_sequences_K[0] // 16 * 16 * 1024
    assert tokens * 4 < s3.bytes_sent < 1.1 * tokens * 4
    num_reads = sum(path.startswith("GET") for path in s3.paths)
    assert num_reads <= tokens / 1024 / window * 1.02 and (window > 1 or num_reads > 0.9 * tokens / 1024)


READ = """
import sys, numpy as np
from pathlib import Path
from fastmix_data.remote.shard_store import ShardStore
from fastmix_data.shards.catalog import load_catalog
from fastmix_data.shards.sequences import SequenceReader
root, url, cache, rank = sys.argv[1:]
catalog = load_catalog(Path(root) / "catalog.parquet").read_from(ShardStore(url, cache, 1 << 24))
reader = SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=8, window=64)
numbers = np.random.default_rng(0).permutation(reader.num_sequences_K[0])
print(sum(int(reader.read(np.zeros(8, np.int64), some[int(rank) * 8 :][:8]).tokens_BS.sum()) for some in np.split(numbers[:640], 40)))
"""


def test_ranks_that_share_a_cache_fetch_a_window_once(make_catalog: MakeCatalog, s3: LocalS3, tmp_path: Path) -> None:
    catalog = make_catalog({"a": [6000]}, block_tokens=2048, shard_blocks=40)
    stored, s3.seconds = in_s3(catalog, s3, tmp_path), 0.02
    arguments = [sys.executable, "-c", READ, str(catalog.root), stored.store.url, str(tmp_path / "cache")]
    ranks = [subprocess.Popen([*arguments, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    sums = [int(rank.communicate(timeout=60)[0]) for rank in ranks]
    local = reader_of(catalog)
    numbers = np.random.default_rng(0).permutation(local.num_sequences_K[0])[:640].reshape(40, 2, 8)
    assert sums == [int(local.read(np.zeros(320, np.int64), numbers[:, rank].ravel()).tokens_BS.sum()) for rank in range(2)]
    assert s3.bytes_sent <= 1.1 * local.num_sequences_K[0] * 8 * 2


def spoil_nothing(s3: LocalS3, key: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


def remove(s3: LocalS3, key: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.delete("corpora", key)


def cut(s3: LocalS3, key: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("corpora", key, content[:-512])


def change(s3: LocalS3, key: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("corpora", key, content[:-1100] + b"\1" * 76 + content[-1024:])


def take_rights(s3: LocalS3, key: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")


@pytest.mark.parametrize(
    ("spoil", "bucket", "expected"),
    [
        (remove, "corpora", "a/train-000-000.tar: there is no such object, which the catalog names; copy WORKDIR/shards there"),
        (cut, "corpora", r"a/train-000-000.tar: has \d+ bytes, the catalog says \d+; copy WORKDIR/shards there again"),
        (
            change,
            "corpora",
            "a/train-000-000.tar: changed since it was first read, and has not the sha256 that the catalog says; copy",
        ),
        (take_rights, "corpora", "a/train-000-000.tar: access is denied; check the credentials"),
        (spoil_nothing, "nowhere", "s3://nowhere/.*: there is no such bucket or folder; check storage.shards"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_with_a_store_is_one_line(
    make_catalog: MakeCatalog,
    s3: LocalS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[..., None],
    bucket: str,
    expected: str,
) -> None:
    catalog = make_catalog({"a": [90]}, shard_blocks=6)
    if bucket == "corpora":
        # Something of the shard is in the cache already: what changed after that is noticed too.
        reader_of(in_s3(catalog, s3, tmp_path)).read(np.zeros(1, np.int64), np.zeros(1, np.int64))
    stored = in_s3(catalog, s3, tmp_path, bucket=bucket)
    path = catalog.shards("a", "train")[0].path
    spoil(s3, f"{tmp_path.name}/{path.removeprefix('shards/')}", (catalog.root / path).read_bytes(), monkeypatch)
    with pytest.raises(FastmixError, match=expected) as error:
        reader_of(stored).read(np.zeros(1, np.int64), np.full(1, 5))
    assert "\n" not in str(error.value)


def test_an_object_that_was_copied_again_is_taken_for_what_it_was(
    make_catalog: MakeCatalog, s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another version, as after a copy in other parts, but with the bytes that the catalog says."""
    catalog = make_catalog({"a": [90]}, shard_blocks=6)
    zero, five = np.zeros(1, np.int64), np.full(1, 5)
    reader_of(in_s3(catalog, s3, tmp_path)).read(zero, zero)
    stored = in_s3(catalog, s3, tmp_path)
    find = ObjectStore.find
    monkeypatch.setattr(ObjectStore, "find", lambda self, path: find(self, path)._replace(version="another"))
    assert np.array_equal(reader_of(stored).read(zero, five).tokens_BS, reader_of(catalog).read(zero, five).tokens_BS)


def test_a_store_that_fails_is_asked_again_and_then_given_up(s3: LocalS3) -> None:
    s3.put("corpora", "again/x", b"0123456789")
    store = ObjectStore("s3://corpora/again", retry_seconds=(0.01, 0.02))
    s3.failing = 2
    with pytest.warns(UserWarning, match=r"s3://corpora/again/x: .*503.*; trying again"):
        found = store.find("x")
    s3.failing = 2
    assert store.read("x", found, start=2, stop=5) == b"234"
    s3.failing = 3
    with pytest.raises(
        FastmixError, match=r"again/x: the store does not answer, tried 3 times in 0 s \(.*\); see that it is reachable"
    ):
        store.read("x", found, start=2, stop=5)


def test_catalogs_of_other_processes_read_the_same_store(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    store = ShardStore("s3://corpora/x", str(tmp_path), 1 << 20)
    stored = make_catalog({"a": [90]}).read_from(store)
    assert pickle.loads(pickle.dumps(stored)).store == store
    assert load_catalog(stored.root / "catalog.parquet").store is None
