"""The manifest: a corpus to ship as ranges of blocks, exact to within one block, that production trainers read.

`manifest.json` says what was asked for and what came out, by phase and source, and lists pools; `parts.parquet` has a row per range of
blocks with the number of its pool. A source's pools are drawn one after the other: epochs of all its blocks, the first blocks of an epoch
(one contiguous range per shard, in proportion to the shards' sizes), and in the next phase, or in a manifest that continues this one, the
rest of that epoch before any block comes again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.atomic_files import hash_of, read_json, sha256_of_file, write_json, write_parquet
from fastmix_data.errors import CorruptArtefactError, InputError
from fastmix_data.manifest.parts import Part
from fastmix_data.remote.shard_store import ShardStore, lies_in_store
from fastmix_data.shards.cached_shard import CachedShard, Neighbours
from fastmix_data.shards.open_shard import Shard, open_shard
from fastmix_data.shards.shard_format import SequenceViews, ShardLayout, shard_layout
from fastmix_data.shards.table_rows import TableRows, column_of
from fastmix_data.units import format_count
from fastmix_data.workdir import ManifestFolder

SCHEMA_VERSION = 3
KIND = "fastmix-manifest"


@dataclass(frozen=True)
class ManifestSource:
    """What one source gives: `weight` was asked for, `share` is realised; `unique_tokens` is its training split.

    `tokens_before` is what manifests that this one continues gave of it; `epochs` counts both. It is `capped` if its cap took something
    from it in any phase. Of several phases, `weight` is the share of the tokens asked for in all of them.
    """

    name: str
    weight: float
    share: float
    num_tokens: int
    unique_tokens: int
    tokens_before: int
    epochs: float
    max_epochs: float
    capped: bool


@dataclass(frozen=True)
class ManifestPhase:
    """A stretch of the run with one mixture: everything by name of the source.

    `asked` are tokens after the caps took theirs, `tokens` what whole blocks realise of them, at most a block away.
    """

    token_budget: int
    num_tokens: int
    weights: Mapping[str, float]
    asked: Mapping[str, int]
    tokens: Mapping[str, int]
    shares: Mapping[str, float]


@dataclass(frozen=True)
class ManifestPool:
    """Blocks of a source that are drawn together: `repeats` permutations of their sequences, for epochs from `first_epoch` on.

    `skip` draws at the beginning were served by a manifest that this one continues, or by an earlier phase; `stop` ends the pool at that
    many draws, the skipped ones counted. A pool without draws, of which `stop` is `skip`, only says what of an epoch was served before.
    """

    source: str
    phase: int
    first_epoch: int
    repeats: int
    skip: int
    stop: int | None
    num_tokens: int

    @property
    def is_marker(self) -> bool:
        """Whether nothing is drawn from it."""
        return self.stop == self.skip

    @property
    def is_whole(self) -> bool:
        """Whether it is drawn from its beginning to its end."""
        return self.skip == 0 and self.stop is None


@dataclass(frozen=True)
class ContinuedManifest:
    """Which manifest another one continues (its sha256), and where: tokens of the run so far, as sequences times their length."""

    manifest: str
    tokens: int
    sequence_length: int

    @property
    def num_sequences(self) -> int:
        """Sequences of the run that were served before."""
        return self.tokens // self.sequence_length


@dataclass(frozen=True)
class Manifest:
    """A production corpus.

    Attributes:
        token_budget: tokens that were asked for; of a manifest that continues another, those of the rest of the run.
        example_tokens: length of the windows that examples of sources with a mask are packed into; None where there are none.
        root: path from the manifest's folder to the catalog's, from which the parts' paths start.
        after: what it continues, if anything.
        sequence_sources: of a materialized manifest, whose parts are read one after another as they are: the sources that the keys of
            its samples number. Empty for all others, which are read in `ManifestOrder`.
        did_work: False if `emit_manifest` found it complete; not part of the file.
        directory: where it lies; not part of the file.
    """

    token_budget: int
    num_tokens: int
    num_shards: int
    block_tokens: int
    example_tokens: int | None
    dtype: str
    vocab_size: int
    eos_id: int
    tokenizer_sha256: str
    seed: int
    catalog_hash: str
    mixture_hash: str
    recipe_hash: str
    root: str
    after: ContinuedManifest | None
    sources: tuple[ManifestSource, ...]
    phases: tuple[ManifestPhase, ...]
    pools: tuple[ManifestPool, ...] = field(repr=False)
    parts: TableRows[Part] = field(repr=False)
    sequence_sources: tuple[ManifestSource, ...] = ()
    sha256: str = ""
    directory: Path = Path()
    did_work: bool = True

    @cached_property
    def root_path(self) -> Path:
        """Folder that the parts' paths start from."""
        return Path(os.path.normpath(self.directory / self.root))

    @property
    def served_sources(self) -> tuple[ManifestSource, ...]:
        """The sources that a loader's items number."""
        return self.sequence_sources or self.sources

    @property
    def default_sequence_length(self) -> int:
        """Of the sequences that it is read in unless others are asked for."""
        return self.block_tokens if self.after is None else self.after.sequence_length

    @property
    def path(self) -> Path:
        """The manifest's own file."""
        return ManifestFolder(self.directory).manifest

    @property
    def starts_within_an_epoch(self) -> bool:
        """Whether a pool begins or ends in the middle of a permutation, which only fastmix's own order can say."""
        return not all(pool.is_whole or pool.is_marker for pool in self.pools)

    @property
    def has_masks(self) -> bool:
        """Whether only some tokens of a source carry loss."""
        return self.example_tokens is not None

    def rows_of_pools(self) -> list[slice]:
        """The parts of each pool: they lie in the order of the pools."""
        bounds = np.searchsorted(column_of(self.parts, "pool"), np.arange(len(self.pools) + 1)).tolist()
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def has_every_block(self, pool_number: int) -> bool:
        """Whether a pool is whole epochs over all that there is of its source."""
        pool = self.pools[pool_number]
        return pool.is_whole and pool.num_tokens == pool.repeats * self._unique_tokens[pool.source]

    @cached_property
    def _unique_tokens(self) -> dict[str, int]:
        return {source.name: source.unique_tokens for source in self.sources}

    @property
    def message(self) -> str:
        """One line for the user."""
        if not self.did_work:
            return f"{self.path} is complete and matches; nothing to do"
        phases = f" in {len(self.phases)} phases ({', '.join(format_count(phase.num_tokens) for phase in self.phases)})"
        said = f"{self.path}: {self.num_tokens} tokens of {len(self.sources)} sources in {self.num_shards} shards"
        said += phases if len(self.phases) > 1 else ""
        return said if self.after is None else f"{said}; {self.continues}"

    @property
    def continues(self) -> str:
        """What it continues, in words; empty where it begins a run."""
        after = self.after
        if after is None:
            return ""
        served = sum(source.tokens_before for source in self.sources)
        return (
            f"continues {after.manifest[:12]} after {after.num_sequences} sequences of {after.sequence_length} ({after.tokens} tokens, "
            f"{served} of them the sources')"
        )

    def layout(self, part: Part) -> ShardLayout:
        """How the samples of a part's shard lie in its file."""
        return shard_layout(self.block_tokens, part.dtype, part.has_mask)

    def open(self, part: Part, *, root: Path) -> Shard:
        """Map the shard that a part is a range of.

        Args:
            root: where the shards are.

        Raises:
            CorruptArtefactError: it is missing, or not what the manifest recorded.
        """
        shard = open_shard(root, part, num_blocks=part.shard_blocks, block_tokens=self.block_tokens, eos_id=self.eos_id)
        if shard.num_blocks != part.shard_blocks:
            problem = f"has {shard.num_blocks} blocks, the manifest says {part.shard_blocks}"
            remedy = "restore the shard, or run `fastmix preprocess` and `fastmix emit` again"
            raise CorruptArtefactError(shard.path, problem, remedy)
        return shard

    def sequences(
        self, part: Part, *, store: ShardStore | None, root: Path, length: int, window: bool
    ) -> SequenceViews | CachedShard:
        """The sequences of a part's shard, from a store if there is one, else mapped; raises as `open`.

        Args:
            window: all of the part is going to be read here, from front to back.
        """
        if store is None or not lies_in_store(part.path, part.storage):
            return self.open(part, root=root).sequences(length)
        per_block = self.block_tokens // length
        first, last = part.block_start * per_block, part.block_stop * per_block
        neighbours = Neighbours(last if window else 1, base=0, first=first, last=last)
        has_tags = bool(self.sequence_sources)
        return CachedShard(store, part, layout=self.layout(part), length=length, neighbours=neighbours, has_tags=has_tags)


_NOT_IN_FILE = ("parts", "directory", "did_work", "sha256")
_RECORDS = {
    "sources": ManifestSource,
    "sequence_sources": ManifestSource,
    "phases": ManifestPhase,
    "pools": ManifestPool,
}


def save_manifest(manifest: Manifest) -> Manifest:
    """Write both files into the manifest's folder; returns it with its own hash.

    Parts first, `manifest.json` last: a folder without one holds no manifest, so a write that was cut short is none.
    """
    folder = ManifestFolder(manifest.directory)
    folder.manifest.unlink(missing_ok=True)
    write_parquet(folder.parts, manifest.parts.table)
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        **{f.name: getattr(manifest, f.name) for f in fields(manifest) if f.name not in _NOT_IN_FILE},
        **{name: [asdict(record) for record in getattr(manifest, name)] for name in _RECORDS},
        "after": None if manifest.after is None else asdict(manifest.after),
        "parts": {"path": folder.parts.name, "sha256": sha256_of_file(folder.parts), "num_rows": len(manifest.parts)},
    }
    sha256 = hash_of(content)
    write_json(folder.manifest, {**content, "sha256": sha256})
    return dataclasses.replace(manifest, sha256=sha256)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest, given its folder or its `manifest.json`, and check it against its own hashes (not the shards'; see `verify`).

    Raises:
        InputError: there is no manifest.
        CorruptArtefactError: another schema version, altered, or its parts are missing or altered.
    """
    path = ManifestFolder(path).manifest if path.is_dir() else path
    require_no_plan(path)
    content = read_verified(path)
    known = {f.name for f in fields(Manifest)} - {*_RECORDS, "after", "parts"}
    records: dict[str, Any] = {name: tuple(kind(**row) for row in content[name]) for name, kind in _RECORDS.items()}
    return Manifest(
        **{name: value for name, value in content.items() if name in known},
        **records,
        after=None if content["after"] is None else ContinuedManifest(**content["after"]),
        parts=_read_parts(path.parent / content["parts"]["path"], sha256=content["parts"]["sha256"]),
        directory=path.parent,
    )


def read_verified(path: Path) -> dict[str, Any]:
    """Content of `manifest.json`, its schema version and own hash checked; raises as `load_manifest`."""
    if not path.is_file():
        raise InputError(path, "there is no manifest", "run `fastmix emit` first")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        remedy = f"give the folder or {path.name} that `fastmix emit` wrote"
        raise CorruptArtefactError(path, "not a fastmix manifest", remedy)
    again = "run `fastmix emit --replace`"
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        problem = f"manifest of schema version {version}, this is {SCHEMA_VERSION}"
        if isinstance(version, int) and version < SCHEMA_VERSION:
            # Its run can be finished with the version that began it; a new manifest has another order, and would serve blocks again.
            again += "; a run that trains on it has another order, so finish it with the fastmix that it began with"
        raise CorruptArtefactError(path, problem, again)
    if content.get("sha256") != hash_of({name: value for name, value in content.items() if name != "sha256"}):
        raise CorruptArtefactError(path, "does not have its own hash, so it was altered", again)
    return content


def require_no_plan(path: Path) -> None:
    """Refuse the plan of a manifest in the place of one.

    Raises:
        InputError: it is one, or lies where there is no manifest.
    """
    plan = ManifestFolder(path.parent).plan
    if plan.is_file() and (path == plan or not path.is_file()):
        problem = "a plan with estimated sizes, made on a sample: the blocks of a manifest are not there yet"
        raise InputError(plan, problem, "run `fastmix preprocess RECIPE --all`, then `fastmix emit RECIPE`")


def _read_parts(path: Path, *, sha256: str) -> TableRows[Part]:
    """Rows of `parts.parquet`; refuses a file that is missing, or not the one that the manifest was written with."""
    again = "run `fastmix emit` again"
    if not path.is_file():
        raise CorruptArtefactError(path, "is missing", again)
    if sha256_of_file(path) != sha256:
        raise CorruptArtefactError(path, "does not have the hash that manifest.json records", again)
    return TableRows.read(path, Part)
