"""The manifest: a token budget turned into ranges of blocks, exact to within one block, that production trainers read.

`manifest.json` says what was asked for and what came out; `parts.parquet` has a row per range of blocks of a shard. A source that is
repeated has every training shard as a full part, and on top of it a partial epoch: one contiguous range per shard, spread over all
its shards in proportion to their size.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.artefacts import hash_of, read_json, sha256_of_file, write_json, write_parquet
from fastmix_data.errors import CorruptArtefactError, InfeasibleBudgetError, InputError, MismatchError
from fastmix_data.manifest.allocation import allocate_tokens, check_budget, token_caps
from fastmix_data.manifest.block_epochs import BlockRange, SourceBlocks
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.strided import ShardLayout

SCHEMA_VERSION = 1
KIND = "fastmix-manifest"
MANIFEST_FILE = "manifest.json"
PARTS_FILE = "parts.parquet"
_CHANGES_SHOWN = 4


@dataclass(frozen=True)
class Part:
    """A range of blocks of one shard, read `repeats` times.

    `num_tokens` and `num_labels` are those of one pass; only the last block of a part can be short, so it has
    `num_labels - (num_blocks - 1) * block_tokens` labels. `partial` parts make up a source's last, incomplete epoch.
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
        root: path from the manifest's folder to the catalog's, from which the parts' paths start.
        did_work: False if `emit_manifest` found it complete; not part of the file.
        directory: where it lies; not part of the file.
    """

    token_budget: int
    num_tokens: int
    num_shards: int
    block_tokens: int
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
    parts: tuple[Part, ...] = field(repr=False)
    sha256: str = ""
    directory: Path = Path()
    did_work: bool = True

    @cached_property
    def root_path(self) -> Path:
        """Folder that the parts' paths start from."""
        return Path(os.path.normpath(self.directory / self.root))

    @property
    def path(self) -> Path:
        """The manifest's own file."""
        return self.directory / MANIFEST_FILE

    @property
    def message(self) -> str:
        """One line for the user."""
        if self.did_work:
            return f"{self.path}: {self.num_tokens} tokens of {len(self.sources)} sources in {self.num_shards} shards"
        return f"{self.path} is complete and matches; nothing to do"

    def layout(self, part: Part) -> ShardLayout:
        """How the samples of a part's shard lie in its file."""
        return ShardLayout(self.block_tokens, np.dtype(part.dtype), part.has_mask)


_ARROW_TYPES = {"str": pa.string(), "int": pa.int64(), "bool": pa.bool_()}
_PARTS_SCHEMA = pa.schema([pa.field(f.name, _ARROW_TYPES[str(f.type)], nullable=False) for f in fields(Part)])
_NOT_IN_FILE = ("parts", "directory", "did_work", "sha256")


def check_emit(catalog: Catalog, emit: EmitSection) -> None:
    """Refuse a budget that no mixture of this catalog could reach; for right after preprocessing, before the search.

    Raises:
        InfeasibleBudgetError: says how much is reachable.
    """
    check_budget(
        catalog.num_tokens_K(),
        token_budget=emit.token_budget,
        max_epochs=[emit.epochs_of(name) for name in catalog.sources],
        names=catalog.sources,
        caps_K=emittable_tokens(catalog, emit),
    )


def emittable_tokens(catalog: Catalog, emit: EmitSection) -> list[int]:
    """Most tokens of each source that whole blocks can realise within its epochs, in the order of the catalog's sources."""
    return _caps(catalog, _blocks(catalog), emit)


def emit_manifest(
    catalog: Catalog,
    mixture: Mixture,
    *,
    emit: EmitSection,
    directory: Path,
    mixture_hash: str | None = None,
    replace: bool = False,
) -> Manifest:
    """Write `manifest.json` and `parts.parquet`, or find them complete.

    Args:
        directory: folder of the two files, usually WORKDIR/manifest.
        mixture_hash: identity of the mixture to record; by default the hash of its weights, so that searching again with the same
            answer changes nothing.
        replace: write anew over a manifest of other inputs.

    Raises:
        InfeasibleBudgetError: the budget is beyond the caps.
        RecipeError: the mixture's sources are not the catalog's.
        MismatchError: a manifest of other inputs is there; names what differs.
        CorruptArtefactError: the manifest that is there was altered.
    """
    weights_K = mixture.weights_K(catalog.sources)
    identity = {
        "catalog_hash": catalog.fingerprint,
        "mixture_hash": mixture_hash or hash_of(dict(mixture.weights)),
        "recipe_hash": hash_of(emit.model_dump()),
    }
    inputs: dict[str, Any] = {"emit": emit, "directory": directory, "identity": identity}
    if not replace and (found := _found(catalog, weights_K.tolist(), **inputs)) is not None:
        return found
    return _write(_plan(catalog, weights_K.tolist(), **inputs))


def _blocks(catalog: Catalog) -> list[SourceBlocks]:
    block_tokens = catalog.info.block_tokens
    return [
        SourceBlocks(catalog.shards(name, "train"), block_tokens=block_tokens, index=index)
        for index, name in enumerate(catalog.sources)
    ]


def _caps(catalog: Catalog, blocks: Sequence[SourceBlocks], emit: EmitSection) -> list[int]:
    """Most tokens of each source that whole blocks can realise within its epochs."""
    caps_K = token_caps(catalog.num_tokens_K(), max_epochs=[emit.epochs_of(name) for name in catalog.sources])
    return [source.floor(cap) for source, cap in zip(blocks, caps_K.tolist(), strict=True)]


def _realise(blocks: Sequence[SourceBlocks], tokens: Sequence[int], *, caps: Sequence[int]) -> list[int]:
    """Realisable amounts next to the asked-for ones; what one source is off by is made up for by the next.

    Saturated sources get their caps, which are realisable. The error that is carried on is thus half a block at most at every step,
    and so is the error of the total.
    """
    realised = [0] * len(tokens)
    carried = 0
    for source, (wanted, cap) in enumerate(zip(tokens, caps, strict=True)):
        if wanted:
            realised[source] = cap if wanted == cap else blocks[source].nearest(wanted + carried, cap=cap)
            carried += wanted - realised[source]
    return realised


def _plan(
    catalog: Catalog, weights: Sequence[float], *, emit: EmitSection, directory: Path, identity: Mapping[str, str]
) -> Manifest:
    blocks = _blocks(catalog)
    caps = _caps(catalog, blocks, emit)
    epochs = [emit.epochs_of(name) for name in catalog.sources]
    tokens_K = allocate_tokens(
        weights,
        available_K=catalog.num_tokens_K(),
        token_budget=emit.token_budget,
        max_epochs=epochs,
        names=catalog.sources,
        caps_K=caps,
    )
    realised = _realise(blocks, tokens_K.tolist(), caps=caps)
    total = sum(realised)
    if not total:
        raise InfeasibleBudgetError(
            f"emit.token_budget {emit.token_budget} is less than half a block of {catalog.info.block_tokens} tokens; raise it"
        )
    sources = tuple(
        ManifestSource(
            name=name,
            weight=weight,
            share=realised[index] / total,
            num_tokens=realised[index],
            unique_tokens=blocks[index].num_tokens,
            epochs=realised[index] / max(blocks[index].num_tokens, 1),
            max_epochs=epochs[index],
            capped=0 < caps[index] == int(tokens_K[index]),
        )
        for index, (name, weight) in enumerate(zip(catalog.sources, weights, strict=True))
    )
    parts = tuple(
        _part(blocks_of_shard, block_tokens=catalog.info.block_tokens)
        for source, tokens in zip(blocks, realised, strict=True)
        for blocks_of_shard in source.ranges(tokens, seed=emit.seed)
    )
    return Manifest(
        token_budget=emit.token_budget,
        num_tokens=total,
        num_shards=len({part.path for part in parts}),
        block_tokens=catalog.info.block_tokens,
        dtype=parts[0].dtype,
        vocab_size=catalog.info.vocab_size,
        eos_id=catalog.info.eos_id,
        tokenizer_sha256=catalog.info.tokenizer_sha256,
        seed=emit.seed,
        root=os.path.relpath(catalog.root.resolve(), directory.resolve()),
        sources=sources,
        parts=parts,
        directory=directory,
        catalog_hash=identity["catalog_hash"],
        mixture_hash=identity["mixture_hash"],
        recipe_hash=identity["recipe_hash"],
    )


def _part(blocks: BlockRange, *, block_tokens: int) -> Part:
    row, num_blocks = blocks.row, blocks.stop - blocks.start
    at_end = blocks.stop == row.num_blocks
    return Part(
        source=row.source,
        path=row.path,
        sha256=row.sha256,
        bytes=row.bytes,
        dtype=row.dtype,
        has_mask=row.has_mask,
        shard_blocks=row.num_blocks,
        block_start=blocks.start,
        block_stop=blocks.stop,
        repeats=blocks.repeats,
        partial=blocks.partial,
        num_tokens=row.num_tokens - blocks.start * block_tokens if at_end else num_blocks * block_tokens,
        num_labels=row.num_labels - blocks.start * block_tokens if at_end else num_blocks * block_tokens,
    )


def _write(manifest: Manifest) -> Manifest:
    """Parts first, manifest.json last; without one, the folder holds no manifest."""
    manifest.path.unlink(missing_ok=True)
    columns = {name: [getattr(part, name) for part in manifest.parts] for name in _PARTS_SCHEMA.names}
    parts_path = manifest.directory / PARTS_FILE
    write_parquet(parts_path, pa.table(columns, schema=_PARTS_SCHEMA))
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        **{f.name: getattr(manifest, f.name) for f in fields(manifest) if f.name not in _NOT_IN_FILE},
        "sources": [asdict(source) for source in manifest.sources],
        "parts": {"path": PARTS_FILE, "sha256": sha256_of_file(parts_path), "num_rows": len(manifest.parts)},
    }
    sha256 = hash_of(content)
    write_json(manifest.path, {**content, "sha256": sha256})
    return dataclasses.replace(manifest, sha256=sha256)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest, given its folder or its `manifest.json`, and check it against its own hashes (not the shards'; see `verify`).

    Raises:
        InputError: there is no manifest.
        CorruptArtefactError: another schema version, altered, or its parts are missing or altered.
    """
    path = path / MANIFEST_FILE if path.is_dir() else path
    content = read_verified(path)
    return _assemble(content, path.parent, read_parts(path.parent / content["parts"]["path"], sha256=content["parts"]["sha256"]))


def read_verified(path: Path) -> dict[str, Any]:
    """Content of `manifest.json`, its schema version and own hash checked; raises as `load_manifest`."""
    if not path.is_file():
        raise InputError(f"{path}: there is no manifest; run `fastmix emit` first")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise CorruptArtefactError(f"{path}: not a fastmix manifest; give the folder or manifest.json that `fastmix emit` wrote")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise CorruptArtefactError(
            f"{path}: manifest of schema version {content.get('schema_version')}, this is {SCHEMA_VERSION}; run `fastmix emit --replace`"
        )
    if content.get("sha256") != hash_of({name: value for name, value in content.items() if name != "sha256"}):
        raise CorruptArtefactError(f"{path}: does not have its own hash, so it was altered; run `fastmix emit --replace`")
    return content


def read_parts(path: Path, *, sha256: str) -> tuple[Part, ...]:
    """Rows of `parts.parquet`.

    Raises:
        CorruptArtefactError: missing, or not the file that the manifest was written with.
    """
    if not path.is_file() or sha256_of_file(path) != sha256:
        problem = "does not have the hash that manifest.json records" if path.is_file() else "is missing"
        raise CorruptArtefactError(f"{path}: {problem}; run `fastmix emit` again")
    return tuple(Part(**row) for row in pq.read_table(path).to_pylist())


def _assemble(content: Mapping[str, Any], directory: Path, parts: tuple[Part, ...], *, did_work: bool = True) -> Manifest:
    known = {f.name for f in fields(Manifest)}
    return Manifest(
        **{name: value for name, value in content.items() if name in known and name not in ("sources", "parts")},
        sources=tuple(ManifestSource(**source) for source in content["sources"]),
        parts=parts,
        directory=directory,
        did_work=did_work,
    )


def _found(
    catalog: Catalog, weights: Sequence[float], *, emit: EmitSection, directory: Path, identity: Mapping[str, str]
) -> Manifest | None:
    """The manifest that is there, if it was made from the same inputs; None if there is none or its parts need to be written again."""
    path = directory / MANIFEST_FILE
    if not path.exists():
        return None
    content = read_verified(path)
    root = os.path.relpath(catalog.root.resolve(), directory.resolve())
    if differences := _differences(content, catalog.sources, weights, emit=emit, identity={**identity, "root": root}):
        raise MismatchError(f"{path}: made with {'; '.join(differences)}; give --replace to write it anew")
    try:
        parts = read_parts(directory / content["parts"]["path"], sha256=content["parts"]["sha256"])
    except CorruptArtefactError:
        return None
    return _assemble(content, directory, parts, did_work=False)


def _differences(
    content: Mapping[str, Any], names: Sequence[str], weights: Sequence[float], *, emit: EmitSection, identity: Mapping[str, str]
) -> list[str]:
    """What an existing manifest was made from, where that is not what is given now."""
    found = {source["name"]: source for source in content["sources"]}
    differences = []
    if content["catalog_hash"] != identity["catalog_hash"]:
        differences.append(f"another catalog ({content['catalog_hash'][:12]}, now {identity['catalog_hash'][:12]})")
    if content["root"] != identity["root"]:
        differences.append(f"shards at {content['root']}, now {identity['root']}")
    if content["mixture_hash"] != identity["mixture_hash"]:
        changed = [
            f"{name} {found[name]['weight']:.4g}, now {weight:.4g}"
            for name, weight in zip(names, weights, strict=True)
            if name in found and found[name]["weight"] != weight
        ]
        differences.append("another mixture" + (f" ({', '.join(changed[:_CHANGES_SHOWN])})" if changed else ""))
    if content["recipe_hash"] != identity["recipe_hash"]:
        now = {"token_budget": emit.token_budget, "seed": emit.seed}
        changed = [f"emit.{name} {content[name]}, now {value}" for name, value in now.items() if content[name] != value]
        changed += [
            f"emit.max_epochs of {name} {found[name]['max_epochs']:g}, now {emit.epochs_of(name):g}"
            for name in names
            if name in found and found[name]["max_epochs"] != emit.epochs_of(name)
        ]
        differences += changed[:_CHANGES_SHOWN] or ["another emit section"]
    return differences
