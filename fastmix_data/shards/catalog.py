"""The catalog: one row per shard, and what all shards share. It is the only way from a source's name to its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa

from fastmix_data.arrays import Float64s
from fastmix_data.atomic_files import write_parquet
from fastmix_data.errors import CorruptArtefactError, MismatchError
from fastmix_data.foreign.storage import SHARD, is_foreign
from fastmix_data.remote.shard_store import ShardStore, lies_in_store
from fastmix_data.shards.cached_shard import CachedShard, Neighbours
from fastmix_data.shards.open_shard import Shard, open_shard
from fastmix_data.shards.sample import CatalogSample, load_record
from fastmix_data.shards.shard_format import SequenceViews, ShardLayout, shard_layout
from fastmix_data.shards.table_rows import TableRows, column_of, distinct, places_of, schema_of
from fastmix_data.weight_units import WeightUnit, counted_shares
from fastmix_data.workdir import CATALOG_FILE, Workdir

SCHEMA_VERSION = 2
Split = Literal["train", "valid"]
_METADATA_KEY = b"fastmix"
_IDENTITY = ["source", "split", "path", "sha256", "storage", "first_token", "num_blocks"]
_HASHED_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class ShardRow:
    """One shard.

    `num_tokens` counts every token once (ends of documents included, the end of the last block and the blocks' extra tokens not).
    `num_labels` counts the positions that have a real next token: `num_blocks * block_tokens` but for the last shard of a partition.
    `num_loss_tokens` are the labels that carry loss: all of them without a mask. `num_padding` of the tokens fill up windows of
    examples, in sources with a mask.

    Of an import the row is a range of a foreign file, `first_token` on, whose `bytes` are those of the whole file and whose `sha256` is
    sampled; or a shard of ours or of another workdir. `storage` says which, see `foreign/storage.py`. `path` and `mask_path` start from
    the catalog's folder or are absolute.
    """

    source: str
    split: str
    path: str
    num_blocks: int
    num_tokens: int
    num_labels: int
    num_loss_tokens: int
    num_documents: int
    dtype: str
    has_mask: bool
    bytes: int
    sha256: str
    num_padding: int = 0
    storage: str = SHARD
    first_token: int = 0
    mask_path: str = ""


@dataclass(frozen=True)
class CatalogInfo:
    """What all shards of a catalog share, and what they were made from.

    `example_tokens` is the length P of the windows that examples of sources with a mask are packed into; None where there are none.
    `sample` says how large the sources are whose shards hold part of their documents; None where all are whole.
    """

    block_tokens: int
    vocab_size: int
    eos_id: int
    tokenizer_sha256: str
    recipe_hash: str = ""
    inputs_hash: str = ""
    sources: tuple[str, ...] = ()
    target_files: tuple[str, ...] = ()
    statistics: dict[str, dict[str, int]] = field(default_factory=dict)
    bos_ids: tuple[int, ...] = ()
    example_tokens: int | None = None
    sample: CatalogSample | None = None
    schema_version: int = SCHEMA_VERSION


class Catalog:
    """The shards of a workdir.

    Attributes:
        root: the folder that the rows' paths start from.
        sources: names of the training sources, in the order of the recipe; arrays of shape (K,) follow it.
        targets_from_files: names that only have a held-out split.
        store: where shards of ours are read from, if not from the root.
    """

    def __init__(self, root: Path, info: CatalogInfo, rows: Sequence[ShardRow], *, store: ShardStore | None = None) -> None:
        """Keep rows in the given order, which the sampler's sequence numbers follow."""
        self.root, self.info, self.rows, self.store = root, info, TableRows.of(ShardRow, rows), store
        self.sources = info.sources
        self.targets_from_files = info.target_files

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes read the file themselves: rows of 100,000 shards need not travel with every piece of work."""
        return _load_same, (self.root / CATALOG_FILE, self.fingerprint, self.store)

    def read_from(self, store: ShardStore | None) -> Catalog:
        """The same catalog with its shards in a store."""
        return self if store == self.store else Catalog(self.root, self.info, self.rows, store=store)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every shard's identity and of what they share; bound into sampler state, mixture and manifest."""
        # Recipe and inputs are left out: shards of the same bytes are the same data, whatever way they came about.
        shared = (self.info.block_tokens, self.info.vocab_size, self.info.eos_id, self.info.tokenizer_sha256, list(self.sources))
        # As `hash_of` of a list of the two, a piece at a time: a million rows are no list.
        digest = hashlib.sha256(b"[" + orjson.dumps(shared) + b",[")
        for number, batch in enumerate(self.rows.table.select(_IDENTITY).to_batches(_HASHED_AT_ONCE)):
            rows = list(map(_identity, *(column.to_pylist() for column in batch.columns)))
            digest.update((b"," if number else b"") + orjson.dumps(rows)[1:-1])
        digest.update(b"]]")
        return digest.hexdigest()

    @cached_property
    def by_split(self) -> dict[tuple[str, str], TableRows[ShardRow]]:
        """Rows by (source, split), both in catalog order; made once, since K look-ups over all rows would be K x shards."""
        sources, splits = distinct(self.rows, "source"), distinct(self.rows, "split")
        key_N = places_of(self.rows, "source", among=sources) * len(splits) + places_of(self.rows, "split", among=splits)
        rows_N = np.argsort(key_N, kind="stable")
        groups = np.split(rows_N, np.flatnonzero(np.diff(key_N[rows_N])) + 1) if len(rows_N) else []
        return {
            (sources[key_N[group[0]] // len(splits)], splits[key_N[group[0]] % len(splits)]): self.rows.part(group)
            for group in sorted(groups, key=lambda group: int(group[0]))
        }

    def shards(self, source: str, split: Split) -> TableRows[ShardRow]:
        """Rows of one source and split, in catalog order."""
        return self.by_split.get((source, split)) or TableRows.of(ShardRow, ())

    def num_tokens(self, source: str, split: Split = "train") -> int:
        """Unique tokens of a source's split."""
        return int(column_of(self.shards(source, split), "num_tokens").sum())

    def num_tokens_K(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Unique training tokens of each source, shape (K,)."""
        return np.array([self.num_tokens(source) for source in self.sources], np.int64)

    def available_K(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Unique training tokens of each whole source, shape (K,): estimated where only a sample of it is there."""
        sampled = {} if self.info.sample is None else self.info.sample.sources
        num_tokens = [sampled[name].num_tokens if name in sampled else self.num_tokens(name) for name in self.sources]
        return np.array(num_tokens, np.int64)

    def share_of_sample_K(self, share: float) -> Float64s:
        """What a share of each whole source is of what is there of it, at most all, shape (K,)."""
        share_K: Float64s = np.minimum(1.0, share * self.available_K() / np.maximum(1, self.num_tokens_K()))
        return share_K

    def is_or_completes(self, catalog_hash: str) -> bool:
        """Whether a fingerprint is this catalog's, or that of the sample that was here before the whole was made."""
        if catalog_hash == self.fingerprint:
            return True
        record = load_record(Workdir(self.root).sample)
        if record is None or record.catalog_hash != catalog_hash:
            return False
        return (record.recipe_hash, record.inputs_hash) == (self.info.recipe_hash, self.info.inputs_hash)

    def num_units_K(self, unit: WeightUnit) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens, tokens that carry loss, or documents of each source's training split, shape (K,)."""
        field = {"tokens": "num_tokens", "loss_tokens": "num_loss_tokens", "examples": "num_documents"}[unit]
        return np.array([column_of(self.shards(name, "train"), field).sum() for name in self.sources], np.int64)

    def units_per_token_K(self, unit: WeightUnit) -> Float64s:
        """How many of a unit a training token of each source is worth, shape (K,)."""
        per_token_K: Float64s = self.num_units_K(unit) / self.num_tokens_K()
        return per_token_K

    def counted(self, weights_K: Float64s) -> dict[WeightUnit, dict[str, float]]:
        """What shares of tokens come to in loss tokens and in examples, by source; empty where every token carries loss."""
        if not any(column_of(rows, "has_mask").any() for (name, _), rows in self.by_split.items() if name in self.sources):
            return {}
        units: tuple[WeightUnit, ...] = ("loss_tokens", "examples")
        shares = {unit: counted_shares(weights_K, per_token_K=self.units_per_token_K(unit)) for unit in units}
        return {unit: dict(zip(self.sources, shares_K.tolist(), strict=True)) for unit, shares_K in shares.items()}

    def fill(self, source: str) -> float | None:
        """Share of a source's tokens, both splits together, that is not padding; None where examples are not packed."""
        rows = [row for split in ("train", "valid") for row in self.by_split.get((source, split), []) if row.has_mask]
        num_tokens = sum(row.num_tokens for row in rows)
        return 1 - sum(row.num_padding for row in rows) / num_tokens if num_tokens else None

    def layout(self, row: ShardRow) -> ShardLayout:
        """How a shard's samples lie in its file."""
        return shard_layout(self.info.block_tokens, row.dtype, row.has_mask)

    def open(self, row: ShardRow) -> Shard:
        """Map a shard; raises as `open_shard` does."""
        info = self.info
        return open_shard(self.root, row, num_blocks=row.num_blocks, block_tokens=info.block_tokens, eos_id=info.eos_id)

    def sequences(self, row: ShardRow, *, length: int, neighbours: Neighbours) -> SequenceViews | CachedShard:
        """A shard's sequences, from the store if there is one, else mapped; raises as `open_shard` does."""
        if self.store is not None and lies_in_store(row.path, row.storage):
            return CachedShard(self.store, row, layout=self.layout(row), length=length, neighbours=neighbours)
        return self.open(row).sequences(length)

    def save(self, path: Path) -> None:
        """Write the catalog atomically."""
        metadata = {_METADATA_KEY: orjson.dumps(asdict(self.info))}
        write_parquet(path, self.rows.table.cast(schema_of(ShardRow)).replace_schema_metadata(metadata))


def load_catalog(path: Path) -> Catalog:
    """Read `catalog.parquet`; shard paths start from its folder.

    Raises:
        MismatchError: there is none yet.
        CorruptArtefactError: not a catalog, or one of another schema version.
    """
    if not path.exists():
        raise MismatchError(path, "there are no shards yet", "run `fastmix preprocess` first")
    try:
        rows = TableRows.read(path, ShardRow)
        info: Mapping[str, Any] = orjson.loads(rows.table.schema.metadata[_METADATA_KEY])
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise CorruptArtefactError(path, "not a fastmix catalog", "delete it and run `fastmix preprocess` again") from error
    if info["schema_version"] != SCHEMA_VERSION:
        problem = f"catalog of schema version {info['schema_version']}, this is {SCHEMA_VERSION}"
        raise CorruptArtefactError(path, problem, "run `fastmix preprocess --replace`")
    content = {**info} | {key: tuple(info[key]) for key in ("sources", "target_files", "bos_ids") if key in info}
    content["sample"] = CatalogSample.from_json(info.get("sample"))
    return Catalog(path.parent, CatalogInfo(**content), rows)


def _identity(
    source: str, split: str, path: str, sha256: str, storage: str, first_token: int, num_blocks: int
) -> tuple[Any, ...]:
    # A foreign file has a row for each range of it, all with the file's identity. Shards have what they had before there were any.
    return (source, split, path, sha256, *([first_token, num_blocks] if is_foreign(storage) else []))


@lru_cache(maxsize=1)
def _load_same(path: Path, fingerprint: str, store: ShardStore | None) -> Catalog:
    catalog = load_catalog(path).read_from(store)
    if catalog.fingerprint != fingerprint:
        raise MismatchError(path, "the catalog changed while it was in use", "run the same command again")
    return catalog
