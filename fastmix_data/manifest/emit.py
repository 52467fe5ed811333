"""Emit: a mixture and a token budget turned into the ranges of blocks of a manifest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.atomic_files import hash_of
from fastmix_data.errors import CorruptArtefactError, InfeasibleBudgetError, MismatchError
from fastmix_data.manifest.allocation import allocate_tokens, check_budget, token_caps
from fastmix_data.manifest.block_epochs import BlockRange, SourceBlocks
from fastmix_data.manifest.manifest import Manifest, ManifestSource, Part, load_manifest, read_verified, save_manifest
from fastmix_data.messages import and_more
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.table_rows import TableRows, column_of, distinct
from fastmix_data.weight_units import token_shares
from fastmix_data.workdir import ManifestFolder


def check_emit(catalog: Catalog, emit: EmitSection) -> Int64s:
    """Refuse a budget that no mixture of this catalog could reach; for right after preprocessing, before the search.

    Returns:
        Most tokens of each source that whole blocks can realise within its epochs, in the order of the catalog's sources.

    Raises:
        InfeasibleBudgetError: says how much is reachable.
    """
    supply = _Supply(catalog, emit)
    supply.check()
    return supply.caps_K


def emit_manifest(catalog: Catalog, mixture: Mixture, *, emit: EmitSection, directory: Path, replace: bool = False) -> Manifest:
    """Write `manifest.json` and `parts.parquet`, or find them complete.

    Args:
        directory: folder of the two files, usually WORKDIR/manifest.
        replace: write anew over a manifest of other inputs.

    Raises:
        InfeasibleBudgetError: the budget is beyond the caps.
        RecipeError: the mixture's sources are not the catalog's.
        MismatchError: a manifest of other inputs is there; names what differs.
        CorruptArtefactError: the manifest that is there was altered.
    """
    weights_K = mixture.weights_K(catalog.sources)
    if mixture.unit != "tokens":
        weights_K = token_shares(weights_K, per_token_K=catalog.units_per_token_K(mixture.unit))
    request = _Request(catalog, tuple(weights_K.tolist()), emit, directory)
    found = None if replace else _found(request)
    return found or save_manifest(_plan(request))


class _Supply:
    """What a catalog's sources can give to production.

    Attributes:
        blocks: of each source.
        unique_K: its tokens, shape (K,).
        caps_K: most tokens of each source that whole blocks can realise within its epochs, shape (K,).
    """

    def __init__(self, catalog: Catalog, emit: EmitSection) -> None:
        self._names, self._token_budget = catalog.sources, emit.token_budget
        self.blocks = [
            SourceBlocks(catalog.shards(name, "train"), block_tokens=catalog.info.block_tokens, index=index)
            for index, name in enumerate(catalog.sources)
        ]
        self.unique_K = np.array([source.num_tokens for source in self.blocks], np.int64)
        epochs_K = [emit.epochs_of(name) for name in catalog.sources]
        limits_K = token_caps(self.unique_K, max_epochs=epochs_K).tolist()
        self.caps_K = np.array([source.floor(limit) for source, limit in zip(self.blocks, limits_K, strict=True)], np.int64)

    def check(self, weights: Sequence[float] | None = None) -> None:
        """Refuse a budget beyond the caps of the sources with a weight, of all of them when not given."""
        check_budget(
            self._names, available_K=self.unique_K, caps_K=self.caps_K, token_budget=self._token_budget, weights_K=weights
        )


@dataclass(frozen=True)
class _Request:
    """What a manifest is asked to be made from; `weights` are in the order of the catalog's sources."""

    catalog: Catalog
    weights: tuple[float, ...]
    emit: EmitSection
    directory: Path

    @cached_property
    def identity(self) -> dict[str, str]:
        """Of the mixture nothing but its weights counts: searching again with the same answer changes nothing."""
        return {
            "catalog_hash": self.catalog.fingerprint,
            "mixture_hash": hash_of(dict(zip(self.catalog.sources, self.weights, strict=True))),
            "recipe_hash": hash_of(self.emit.model_dump()),
            "root": os.path.relpath(self.catalog.root.resolve(), self.directory.resolve()),
        }


def _plan(request: _Request) -> Manifest:
    catalog, weights, emit = request.catalog, request.weights, request.emit
    info, supply = catalog.info, _Supply(catalog, emit)
    supply.check(weights)
    tokens, caps = allocate_tokens(weights, caps_K=supply.caps_K, token_budget=emit.token_budget).tolist(), supply.caps_K.tolist()
    realised = _realise(supply.blocks, tokens, caps=caps)
    total = sum(realised)
    if not total:
        problem = f"emit.token_budget {emit.token_budget} is less than half a block of {info.block_tokens} tokens"
        raise InfeasibleBudgetError("", problem, "raise it")
    parts = TableRows.of(
        Part,
        (
            _part(blocks, block_tokens=info.block_tokens)
            for source, tokens in zip(supply.blocks, realised, strict=True)
            for blocks in source.ranges(tokens, seed=emit.seed)
        ),
    )
    return Manifest(
        token_budget=emit.token_budget,
        num_tokens=total,
        num_shards=len(distinct(parts, "path")),
        block_tokens=info.block_tokens,
        example_tokens=info.example_tokens if column_of(parts, "has_mask").any() else None,
        dtype=np.result_type(*distinct(parts, "dtype")).str,
        vocab_size=info.vocab_size,
        eos_id=info.eos_id,
        tokenizer_sha256=info.tokenizer_sha256,
        seed=emit.seed,
        catalog_hash=request.identity["catalog_hash"],
        mixture_hash=request.identity["mixture_hash"],
        recipe_hash=request.identity["recipe_hash"],
        root=request.identity["root"],
        sources=tuple(
            ManifestSource(
                name=name,
                weight=weight,
                share=realised[index] / total,
                num_tokens=realised[index],
                unique_tokens=supply.blocks[index].num_tokens,
                epochs=realised[index] / max(supply.blocks[index].num_tokens, 1),
                max_epochs=emit.epochs_of(name),
                capped=0 < caps[index] == tokens[index],
            )
            for index, (name, weight) in enumerate(zip(catalog.sources, weights, strict=True))
        ),
        parts=parts,
        directory=request.directory,
    )


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


def _part(blocks: BlockRange, *, block_tokens: int) -> Part:
    row, num_blocks = blocks.row, blocks.stop - blocks.start
    # Only a range that ends with its shard can hold a short block; every other holds whole ones.
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
        storage=row.storage,
        first_token=row.first_token,
        mask_path=row.mask_path,
    )


def _found(request: _Request) -> Manifest | None:
    """The manifest that is there, if it was made from the same inputs; None if there is none or its parts need to be written again."""
    path = ManifestFolder(request.directory).manifest
    if not path.exists():
        return None
    if differences := _differences(read_verified(path), request):
        raise MismatchError(path, f"made with {'; '.join(differences)}", "give --replace to write it anew")
    try:
        return dataclasses.replace(load_manifest(path), did_work=False)
    except CorruptArtefactError:  # its parts alone: the file itself has just been read
        return None


def _differences(content: dict[str, Any], request: _Request) -> list[str]:
    """What an existing manifest was made from, where that is not what is asked for now."""
    found = {source["name"]: source for source in content["sources"]}
    names, emit, identity = request.catalog.sources, request.emit, request.identity
    changed = {name for name, value in identity.items() if content[name] != value}
    differences = []
    if "catalog_hash" in changed:
        differences.append(f"another catalog ({content['catalog_hash'][:12]}, now {identity['catalog_hash'][:12]})")
    if "root" in changed:
        differences.append(f"shards at {content['root']}, now {identity['root']}")
    if "mixture_hash" in changed:
        shares = [
            f"{name} {found[name]['weight']:.4g}, now {weight:.4g}"
            for name, weight in zip(names, request.weights, strict=True)
            if name in found and found[name]["weight"] != weight
        ]
        differences.append("another mixture" + (f" ({and_more(shares)})" if shares else ""))
    if "recipe_hash" in changed:
        now = {"token_budget": emit.token_budget, "seed": emit.seed}
        keys = [f"emit.{name} {content[name]}, now {value}" for name, value in now.items() if content[name] != value]
        keys += [
            f"emit.max_epochs of {name} {found[name]['max_epochs']:g}, now {emit.epochs_of(name):g}"
            for name in names
            if name in found and found[name]["max_epochs"] != emit.epochs_of(name)
        ]
        differences.append(and_more(keys, separator="; ") if keys else "another emit section")
    return differences
