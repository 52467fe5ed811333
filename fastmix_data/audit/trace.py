"""Which documents a step of a production run trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.atomic_files import read_json
from fastmix_data.errors import InputError, MismatchError
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.order import Located, ManifestOrder
from fastmix_data.manifest.written_order import WrittenOrder, order_of
from fastmix_data.messages import and_more
from fastmix_data.shards.catalog import load_catalog
from fastmix_data.shards.documents import documents_of_blocks
from fastmix_data.shards.table_rows import column_of
from fastmix_data.text_table import aligned
from fastmix_data.workdir import ExportFolder, MaterializedFolder, Workdir

_UNKNOWN = "(not recorded)"


@dataclass(frozen=True)
class TracedStep:
    """A step as the loader counts it: R ranks read R * B sequences together, rank r the positions r, r + R, ... of them.

    Attributes:
        step: from 0, of this manifest.
        batch_size: B, sequences of one rank.
        rank: whose share is wanted; all of them when None.
    """

    step: int
    batch_size: int
    sequence_length: int
    num_ranks: int = 1
    rank: int | None = None


def trace(manifest: Manifest, traced: TracedStep, *, root: Path | None = None) -> dict[str, Any]:
    """Name the documents of a step: by sequence, and added up.

    Args:
        root: workdir with the catalog and its tables of documents, if not where the manifest says.

    Raises:
        InputError: the step is beyond the end of the run, or there is no such rank.
        RecipeError, MismatchError: as `ManifestOrder`; or the shards in the catalog are others.
        CorruptArtefactError: a table of documents cannot be read.
    """
    if traced.rank is not None and traced.rank >= traced.num_ranks:
        raise InputError(f"--rank {traced.rank}", f"there are {traced.num_ranks} ranks, from 0 on", "give --ranks too")
    order = order_of(manifest, sequence_length=traced.sequence_length)
    size = traced.batch_size * traced.num_ranks
    first = traced.step * size
    if first >= order.num_sequences:
        num_steps = -(-order.num_sequences // size)
        problem = f"is beyond the end of {manifest.path}, whose {order.num_sequences} sequences make {num_steps} steps of {size}"
        raise InputError(f"--step {traced.step}", problem, f"give a step from 0 to {num_steps - 1}")
    begin, every = (first, 1) if traced.rank is None else (first + traced.rank, traced.num_ranks)
    positions_N = np.arange(begin, min(first + size, order.num_sequences), every)
    read = _read_at(manifest, order, positions_N, root=root)
    sequences = _sequences(read.manifest, read.located, length=traced.sequence_length)
    for position, phase, sequence in zip(positions_N.tolist(), read.phase_N.tolist(), sequences, strict=True):
        sequence |= {"position": position, "rank": (position - first) % traced.num_ranks, "phase": phase}
    totals: dict[tuple[str, str, str], int] = {}
    for sequence in sequences:
        for document in sequence["documents"]:
            name = sequence["source"], document["file"], document["locator"]
            totals[name] = totals.get(name, 0) + document["tokens"]
    documents = [{"source": s, "file": f, "locator": at, "tokens": tokens} for (s, f, at), tokens in totals.items()]
    return {"manifest": str(manifest.path), **vars(traced), "documents": documents, "sequences": sequences}


@dataclass(frozen=True)
class _Read:
    """Sequences in the manifest whose shards the documents lie in; `within` counts in sequences of the traced length."""

    manifest: Manifest
    located: Located
    phase_N: Int64s


def _read_at(manifest: Manifest, order: ManifestOrder | WrittenOrder, positions_N: Int64s, *, root: Path | None) -> _Read:
    if isinstance(order, ManifestOrder):
        manifest = manifest if root is None else replace(manifest, root=str(root.resolve()))
        return _Read(manifest, order.locate(positions_N), order.phase_of(positions_N))
    # A block of a materialized manifest is a sequence of the run that it was made from.
    written, per_written = order.locate(positions_N), order.per_block
    origin = load_manifest(MaterializedFolder(manifest.directory).origin.root)
    begun = ExportFolder(manifest.directory).begun
    # Its copy does not know the way from here to its shards; what was written when it was made does.
    where = str(root.resolve()) if root is not None else read_json(begun)["root"] if begun.exists() else str(manifest.directory)
    block_end_P = np.cumsum(column_of(manifest.parts, "block_stop") - column_of(manifest.parts, "block_start"))
    sequence_N = block_end_P[written.part_N] - column_of(manifest.parts, "block_stop")[written.part_N] + written.block_N
    order_of_origin = ManifestOrder(origin, sequence_length=manifest.block_tokens)
    found = order_of_origin.locate(sequence_N)
    located = replace(found, within_N=found.within_N * per_written + written.within_N, num_labels_N=written.num_labels_N)
    return _Read(replace(origin, root=where), located, order_of_origin.phase_of(sequence_N))


def _sequences(manifest: Manifest, located: Located, *, length: int) -> list[dict[str, Any]]:
    path = Workdir(manifest.root_path).catalog
    if not path.is_file():
        problem = "is not there, and with the tables beside it says which documents the shards hold"
        raise InputError(path, problem, "give the workdir that the manifest was made from with --root")
    catalog = load_catalog(path)
    parts = [manifest.parts[number] for number in located.part_N.tolist()]
    # Of a foreign file there is a row for each range of it.
    rows_of_sources = (catalog.shards(source, "train") for source in {part.source for part in parts})
    row_of = {(row.path, row.first_token): row for rows in rows_of_sources for row in rows}
    rows = [row_of.get((part.path, part.first_token)) for part in parts]
    changed = {part.path for part, row in zip(parts, rows, strict=True) if row is None or row.sha256 != part.sha256}
    if changed:
        problem = f"{and_more(sorted(changed))} is another shard than the manifest was made from"
        raise MismatchError(catalog.root, problem, "restore it, or run `fastmix emit --replace`")
    # Sequences of one block look it up once.
    blocks = {
        (row.path, row.first_token, block): (row, block)
        for row, block in zip(rows, located.block_N.tolist(), strict=True)
        if row is not None
    }
    of_block = dict(zip(blocks, documents_of_blocks(catalog, list(blocks.values())), strict=True))
    sequences = []
    for part, block, within in zip(parts, located.block_N.tolist(), located.within_N.tolist(), strict=True):
        first = within * length
        found = of_block[part.path, part.first_token, block]
        documents = [] if found is not None else [{"file": _UNKNOWN, "locator": "", "tokens": length}]
        for document in found or ():
            # Of a document's tokens in the block those in the sequence; the label of its last position is not one of them.
            tokens = min(document["last"], first + length - 1) - max(document["first"], first) + 1
            if tokens > 0:
                documents.append({"file": document["file"], "locator": document["locator"], "tokens": tokens})
        place = {"shard": part.path, "block": block, "first_token": first}
        sequences.append({"source": part.source, **place, "documents": documents})
    return sequences


def format_trace(content: dict[str, Any]) -> str:
    """What `trace` found, for people."""
    sequences = content["sequences"]
    phases = sorted({sequence["phase"] for sequence in sequences})
    whose = (
        f"rank {content['rank']} of {content['num_ranks']}" if content["rank"] is not None else f"{content['num_ranks']} ranks"
    )
    head = (
        f"{content['manifest']}: step {content['step']} of {whose}: sequences {sequences[0]['position']} to "
        f"{sequences[-1]['position']}, phase {' and '.join(map(str, phases))}, {len(content['documents'])} documents"
    )
    rows = [
        [document["source"], str(document["tokens"]), document["file"], str(document["locator"])]
        for document in sorted(content["documents"], key=lambda document: (document["source"], -document["tokens"]))
    ]
    return "\n".join([head, aligned([["source", "tokens", "file", "locator"], *rows], flush_left=(0, 2, 3))])
