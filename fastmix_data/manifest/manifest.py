"""The manifest: a corpus to ship as ranges of blocks, exact to within one block, that production trainers read.

`manifest.json` says what was asked for and what came out; `parts.parquet` has a row per range of blocks of a shard. A source that is
repeated has every training shard as a full part, and on top of it a partial epoch: one contiguous range per shard, spread over all
its shards in proportion to their size.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fastmix_data.atomic_files import hash_of, read_json, sha256_of_file, write_json, write_parquet
from fastmix_data.errors import CorruptArtefactError, InputError
from fastmix_data.foreign.storage import SHARD
from fastmix_data.shards.open_shard import Shard, open_shard
from fastmix_data.shards.shard_format import ShardLayout, shard_layout
from fastmix_data.shards.table_rows import TableRows
from fastmix_data.workdir import ManifestFolder

SCHEMA_VERSION = 2
KIND = "fastmix-manifest"


@dataclass(frozen=True)
class Part:
    """A range of blocks of one shard, read `repeats` times.

    `num_tokens` and `num_labels` are those of one pass; only the last block of a part can be short, so it has
    `num_labels - (num_blocks - 1) * block_tokens` labels. `partial` parts make up a source's last, incomplete epoch.

    `storage`, `first_token` and `mask_path` are those of the catalog's row: of an import, the shard is a range of a foreign file.
    """

    source: str
    path: str
    sha256: str
    bytes: int
    dtype: str
    has_mask: bool
    shard_blocks: int
    block_start: int
    block_stop: int
    repeats: int
    partial: bool
    num_tokens: int
    num_labels: int
    storage: str = SHARD
    first_token: int = 0
    mask_path: str = ""

    @property
    def num_blocks(self) -> int:
        """Blocks of one pass."""
        return self.block_stop - self.block_start

    @property
    def is_whole_shard(self) -> bool:
        """Whether the range is the entire shard."""
        return self.num_blocks == self.shard_blocks


@dataclass(frozen=True)
class ManifestSource:
    """What one source gives: `weight` was asked for, `share` is realised; `unique_tokens` is its training split."""

    name: str
    weight: float
    share: float
    num_tokens: int
    unique_tokens: int
    epochs: float
    max_epochs: float
    capped: bool


@dataclass(frozen=True)
class Manifest:
    """A production corpus.

    Attributes:
        example_tokens: length of the windows that examples of sources with a mask are packed into; None where there are none.
        root: path from the manifest's folder to the catalog's, from which the parts' paths start.
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
    sources: tuple[ManifestSource, ...]
    parts: Sequence[Part] = field(repr=False)
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
    def path(self) -> Path:
        """The manifest's own file."""
        return ManifestFolder(self.directory).manifest

    @property
    def message(self) -> str:
        """One line for the user."""
        if self.did_work:
            return f"{self.path}: {self.num_tokens} tokens of {len(self.sources)} sources in {self.num_shards} shards"
        return f"{self.path} is complete and matches; nothing to do"

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


_OF_SOURCES = ("sources", "sequence_sources")
_NOT_IN_FILE = ("parts", "directory", "did_work", "sha256")


def save_manifest(manifest: Manifest) -> Manifest:
    """Write both files into the manifest's folder; returns it with its own hash.

    Parts first, `manifest.json` last: a folder without one holds no manifest, so a write that was cut short is none.
    """
    folder = ManifestFolder(manifest.directory)
    folder.manifest.unlink(missing_ok=True)
    write_parquet(folder.parts, TableRows.of(Part, manifest.parts).table)
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        **{f.name: getattr(manifest, f.name) for f in fields(manifest) if f.name not in _NOT_IN_FILE},
        **{name: [asdict(source) for source in getattr(manifest, name)] for name in _OF_SOURCES},
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
    content = read_verified(path)
    known = {f.name for f in fields(Manifest)} - {"parts", *_OF_SOURCES}
    return Manifest(
        **{name: value for name, value in content.items() if name in known},
        sources=tuple(ManifestSource(**source) for source in content["sources"]),
        sequence_sources=tuple(ManifestSource(**source) for source in content.get("sequence_sources", ())),
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
    if content.get("schema_version") != SCHEMA_VERSION:
        problem = f"manifest of schema version {content.get('schema_version')}, this is {SCHEMA_VERSION}"
        raise CorruptArtefactError(path, problem, again)
    if content.get("sha256") != hash_of({name: value for name, value in content.items() if name != "sha256"}):
        raise CorruptArtefactError(path, "does not have its own hash, so it was altered", again)
    return content


def _read_parts(path: Path, *, sha256: str) -> TableRows[Part]:
    """Rows of `parts.parquet`; refuses a file that is missing, or not the one that the manifest was written with."""
    again = "run `fastmix emit` again"
    if not path.is_file():
        raise CorruptArtefactError(path, "is missing", again)
    if sha256_of_file(path) != sha256:
        raise CorruptArtefactError(path, "does not have the hash that manifest.json records", again)
    return TableRows.read(path, Part)
