"""A manifest that a run has read part of: where each of its sources stands, on a catalog that may have grown since."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmix_data.errors import InputError, MismatchError
from fastmix_data.manifest.block_set import BlockSet, SourceShards
from fastmix_data.manifest.epoch_draws import EpochDraws, epoch_keys
from fastmix_data.manifest.manifest import ContinuedManifest, Manifest, ManifestPool
from fastmix_data.manifest.order import ManifestOrder
from fastmix_data.manifest.source_stream import SourceStream
from fastmix_data.messages import and_more
from fastmix_data.permutation import name_key
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.table_rows import column_of
from fastmix_data.workdir import MaterializedFolder


@dataclass(frozen=True)
class Continuation:
    """The place in a run at which another manifest takes over.

    Attributes:
        manifest: the one that was read until there.
        place: what the new manifest records of it.
        drawn: sequences of each source that were read of this manifest, by name.
    """

    manifest: Manifest
    place: ContinuedManifest
    drawn: dict[str, int]


def continue_after(manifest: Manifest, tokens: int, *, sequence_length: int | None = None) -> Continuation:
    """Find the place after some tokens of a run, as trainers count them: sequences times their length.

    Args:
        tokens: of the whole run, those of manifests that this one continues counted; rounded to whole sequences.
        sequence_length: that the run is read in; by default the one the manifest is fixed to, else its block_tokens.

    Raises:
        InputError: the place is before the manifest begins or not before its end; or the manifest is a materialized one.
        RecipeError, MismatchError: as `ManifestOrder`.
    """
    if manifest.sequence_sources:
        origin = MaterializedFolder(manifest.directory).origin.root
        remedy = f"name the one that it was made from, {origin} or what that is a copy of, and --sequence-length {manifest.block_tokens}"
        raise InputError(manifest.path, "is materialized, and does not know what of its sources is left", remedy)
    before, length = manifest.after, sequence_length or manifest.default_sequence_length
    order = ManifestOrder(manifest, sequence_length=length)
    num_sequences, first = (tokens + length // 2) // length, before.num_sequences if before is not None else 0
    end = first + order.num_sequences
    if not first <= num_sequences < end:
        what = "is beyond the end of" if num_sequences >= end else "lies before"
        extent = f"{manifest.path}, which holds the run from token {first * length} to {end * length} in sequences of {length}"
        remedy = "give a place within it, or with --of the manifest that was read there"
        raise InputError(f"--after {tokens}", f"{what} {extent}", remedy)
    drawn_K = order.drawn_before(num_sequences - first).tolist()
    place = ContinuedManifest(manifest.sha256, num_sequences * length, length)
    return Continuation(manifest, place, dict(zip((source.name for source in manifest.sources), drawn_K, strict=True)))


@dataclass(frozen=True)
class ContinuedSource:
    """Where a source stands: what it gives next, and the tokens that it gave."""

    stream: SourceStream
    num_served: int


def continued_sources(continuation: Continuation, catalog: Catalog) -> dict[str, ContinuedSource]:
    """Where the sources of a manifest stand, by name, on a catalog that has all of the shards it was made from.

    Raises:
        MismatchError: a source or a shard is missing or another one, or the tokens are those of another tokenizer or block size.
    """
    manifest = continuation.manifest
    _check_same_tokens(manifest, catalog)
    missing = [source.name for source in manifest.sources if source.name not in catalog.sources]
    if missing:
        problem = f"has no source {and_more(missing)}, which the manifest has"
        raise MismatchError(catalog.root, problem, "keep its shards, and give it weight 0 if it is to end")
    pools_of: dict[str, list[tuple[ManifestPool, slice]]] = {source.name: [] for source in manifest.sources}
    for pool, rows in zip(manifest.pools, manifest.rows_of_pools(), strict=True):
        pools_of[pool.source].append((pool, rows))
    found = {}
    for source in manifest.sources:
        shards = SourceShards(catalog.shards(source.name, "train"), block_tokens=catalog.info.block_tokens)
        fresh = SourceStream.fresh(shards, seed=manifest.seed, name=source.name)
        pools = [(pool, _block_set(manifest, rows, shards)) for pool, rows in pools_of[source.name]]
        walked = _walk(fresh, pools, num_drawn=continuation.drawn[source.name], length=continuation.place.sequence_length)
        found[source.name] = ContinuedSource(walked.stream, source.tokens_before + walked.num_served)
    return found


def _check_same_tokens(manifest: Manifest, catalog: Catalog) -> None:
    here, there = catalog.info, manifest
    for name in ("block_tokens", "tokenizer_sha256", "vocab_size", "eos_id"):
        if getattr(here, name) != getattr(there, name):
            problem = f"has {name} {getattr(here, name)}, the manifest that is to be continued {getattr(there, name)}"
            raise MismatchError(
                catalog.root, problem, "continue it on the catalog that it was made from, or on that one with more shards"
            )


def _block_set(manifest: Manifest, rows: slice, shards: SourceShards) -> BlockSet:
    """A pool's parts as blocks of the shards that are there now."""
    # Of a foreign file there is a row for each range of it.
    known = zip(*(shards.rows.table[name].to_pylist() for name in ("path", "first_token", "sha256", "num_blocks")), strict=True)
    number_of = {identity: number for number, identity in enumerate(known)}
    table = manifest.parts.table.slice(rows.start, rows.stop - rows.start)
    wanted = zip(*(table[name].to_pylist() for name in ("path", "first_token", "sha256", "shard_blocks")), strict=True)
    found = [(path, number_of.get((path, *rest), -1)) for path, *rest in wanted]
    changed = [path for path, number in found if number < 0]
    if changed:
        source = manifest.pools[int(column_of(manifest.parts, "pool")[rows.start])].source
        problem = f"source {source}: {and_more(changed)} changed or is gone since {manifest.path} was made"
        raise MismatchError(
            "--after", problem, "restore it; sources may only grow by shards, and new text can be a source of its own"
        )
    # In the order of the parts, which the permutations of their sequences go by, whatever order the catalog has now.
    shard_R = np.array([number for _, number in found], np.int64)
    start_R, stop_R = (column_of(manifest.parts, name)[rows] for name in ("block_start", "block_stop"))
    return BlockSet(shards, shard_R, start_R, stop_R)


def _walk(fresh: SourceStream, pools: list[tuple[ManifestPool, BlockSet]], *, num_drawn: int, length: int) -> ContinuedSource:
    """Go through a source's pools, as far as they were drawn."""
    stream, served = fresh, 0
    for pool, blocks in pools:
        size = blocks.num_sequences(length)
        stop = pool.repeats * size if pool.stop is None else pool.stop
        place = min(stop, pool.skip + num_drawn)
        # Draws that an earlier manifest served say where this one began, even if none of the pool's own was drawn yet.
        if place or not size:
            epoch, in_epoch = divmod(place - 1, size) if size else (pool.repeats - 1, 0)
            stream = stream.after(blocks, epoch=pool.first_epoch + epoch, num_drawn=in_epoch + 1, sequence_length=length)
        if place > pool.skip:
            served += _num_tokens(blocks, pool, place, fresh, length) - _num_tokens(blocks, pool, pool.skip, fresh, length)
        num_drawn -= place - pool.skip
        if place < stop or (not num_drawn and not pool.is_marker):
            break
    return ContinuedSource(stream, served)


def _num_tokens(blocks: BlockSet, pool: ManifestPool, draws: int, source: SourceStream, length: int) -> int:
    """Tokens of a pool's first draws, those that it skips counted."""
    epochs, left = divmod(draws, blocks.num_sequences(length))
    if not left:
        return epochs * blocks.num_tokens
    key = epoch_keys(source.seed, name_key(source.name), pool.first_epoch + epochs)
    return epochs * blocks.num_tokens + EpochDraws(blocks, sequence_length=length, key=key).num_tokens(left)
