from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastmix_data.atomic_files import hash_of, write_parquet
from fastmix_data.audit.inspection import inspect
from fastmix_data.errors import CorruptArtefactError, MismatchError
from fastmix_data.manifest.emit import check_emit, emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow, load_catalog
from fastmix_data.shards.sequences import SequenceReader
from fastmix_data.shards.shard_format import shard_layout
from fastmix_data.shards.table_rows import TableRows

MakeCatalog = Callable[..., Catalog]


def test_a_catalog_comes_back_as_it_was_saved(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    made = make_catalog({"a": [410, 333], "b": [2000]}, masked=["b"])
    info = CatalogInfo(16, 65536, 0, "abc", "r", "i", ("a", "b"), ("held",), {"a": {"num_documents": 2}})
    catalog = Catalog(made.root, info, made.rows)
    catalog.save(made.root / "catalog.parquet")
    loaded = load_catalog(made.root / "catalog.parquet")
    assert (loaded.info, loaded.rows, loaded.fingerprint) == (info, catalog.rows, catalog.fingerprint)
    assert (loaded.sources, loaded.targets_from_files) == (("a", "b"), ("held",))
    assert loaded.num_tokens_K().tolist() == [743, 2000] and loaded.num_tokens("a", "valid") == 40
    row = loaded.shards("b", "train")[0]
    assert loaded.open(row).loss_mask_NT is not None and loaded.open(row).num_blocks == row.num_blocks
    assert loaded.shards("c", "train") == []


def test_another_process_reads_the_catalog_itself_and_refuses_one_that_changed(make_catalog: MakeCatalog) -> None:
    catalog = make_catalog({"a": [410]})
    sent = pickle.dumps(catalog)
    assert len(sent) < 1000 and pickle.loads(sent).fingerprint == catalog.fingerprint
    changed = make_catalog({"a": [411]})
    assert pickle.loads(pickle.dumps(changed)).fingerprint == changed.fingerprint
    with pytest.raises(MismatchError, match="the catalog changed while it was in use"):
        pickle.loads(sent.replace(catalog.fingerprint.encode(), b"0" * 64))


def test_what_is_no_catalog_of_this_version_is_refused(make_catalog: MakeCatalog) -> None:
    path = make_catalog({"a": [410]}).root / "catalog.parquet"
    table = pq.read_table(path)
    info: dict[str, Any] = {**orjson.loads(table.schema.metadata[b"fastmix"]), "schema_version": 99}
    write_parquet(path, table.replace_schema_metadata({b"fastmix": orjson.dumps(info)}))
    with pytest.raises(CorruptArtefactError, match="schema version 99, this is 2; run `fastmix preprocess --replace`"):
        load_catalog(path)
    for damage in (lambda: write_parquet(path, pa.table({"a": [1]})), lambda: path.write_bytes(b"PAR1" * 5)):
        damage()
        with pytest.raises(CorruptArtefactError, match="not a fastmix catalog; delete it and run `fastmix preprocess` again"):
            load_catalog(path)
    path.unlink()
    with pytest.raises(MismatchError, match="there are no shards yet; run `fastmix preprocess` first"):
        load_catalog(path)


class _CountingRows(TableRows[ShardRow]):
    """Rows that count how often objects are made of all of them."""

    times = 0

    def __iter__(self) -> Iterator[ShardRow]:
        self.times += 1
        return super().__iter__()


def test_a_large_catalog_is_read_by_column_and_not_row_by_row(tmp_path: Path) -> None:
    """512 sources of 20,000 shards, without files."""
    num_sources, num_shards, layout = 512, 20_000, shard_layout(2048, "<u2", False)
    names = tuple(f"s{k:03d}" for k in range(num_sources))
    rows = []
    for number in range(num_shards):
        split, tokens = ("valid" if number % 25 == 0 else "train"), 64 * 2048 - number % 3
        path = f"shards/{number}.tar"
        labels = tokens - (number % 3 > 0)
        name = names[number * num_sources // num_shards]
        rows.append(ShardRow(name, split, path, 64, tokens, labels, labels, 9, "<u2", False, layout.num_bytes(64), "0"))
    Catalog(tmp_path, CatalogInfo(2048, 60000, 0, "t", sources=names), rows).save(tmp_path / "catalog.parquet")
    catalog = load_catalog(tmp_path / "catalog.parquet")
    counting = _CountingRows(catalog.rows.table, ShardRow)
    catalog.rows = counting
    emit = EmitSection(token_budget=int(catalog.num_tokens_K().sum()), max_epochs=2)
    reader = SequenceReader(catalog, sources=names, split="train", sequence_length=512)
    assert reader.num_sequences_K.sum() == sum(256 for row in rows if row.split == "train")
    assert check_emit(catalog, emit).sum() > emit.token_budget
    mixture = Mixture(weights=dict.fromkeys(names, 1 / num_sources))
    for _ in range(2):
        manifest = emit_manifest(catalog, mixture, emit=emit, directory=tmp_path / "manifest")
    assert abs(manifest.num_tokens - emit.token_budget) <= 2048 and not manifest.did_work
    assert counting.times == 0 and catalog.fingerprint == hash_of(
        [[2048, 60000, 0, "t", list(names)], [(row.source, row.split, row.path, row.sha256) for row in rows]]
    )
    assert len(inspect(tmp_path)["catalog"]["splits"]) == 2 * num_sources
    assert np.array_equal(catalog.num_tokens_K(), [source.unique_tokens for source in manifest.sources])
