"""Which documents a step of a production run trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmix_data.errors import InputError, MismatchError
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.order import Located, ManifestOrder
from fastmix_data.messages import and_more
from fastmix_data.shards.catalog import load_catalog
from fastmix_data.shards.documents import documents_of_blocks
from fastmix_data.text_table import aligned
from fastmix_data.workdir import Workdir

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


def trace(manifest: Manifest, traced: TracedStep) -> dict[str, Any]:
    """Name the documents of a step: by sequence, and added up.

    Raises:
        InputError: the step is beyond the end of the run, or there is no such rank.
        RecipeError, MismatchError: as `ManifestOrder`; or the shards in the catalog are others.
        CorruptArtefactError: a table of documents cannot be read.
    """
    if traced.rank is not None and traced.rank >= traced.num_ranks:
        raise InputError(f"--rank {traced.rank}", f"there are {traced.num_ranks} ranks, from 0 on", "give --ranks too")
    order = ManifestOrder(manifest, sequence_length=traced.sequence_length)
    size = traced.batch_size * traced.num_ranks
    first = traced.step * size
    if first >= order.num_sequences:
        num_steps = -(-order.num_sequences // size)
        problem = f"is beyond the end of {manifest.path}, whose {order.num_sequences} sequences make {num_steps} steps of {size}"
        raise InputError(f"--step {traced.step}", problem, f"give a step from 0 to {num_steps - 1}")
    begin, every = (first, 1) if traced.rank is None else (first + traced.rank, traced.num_ranks)
    positions_N = np.arange(begin, min(first + size, order.num_sequences), every)
    sequences = _sequences(manifest, order.locate(positions_N), length=traced.sequence_length)
    for position, sequence in zip(positions_N.tolist(), sequences, strict=True):
        sequence["position"], sequence["rank"] = position, (position - first) % traced.num_ranks
        sequence["phase"] = int(np.searchsorted(order.phase_start_F, position, side="right")) - 1
    totals: dict[tuple[str, str, str], int] = {}
    for sequence in sequences:
        for document in sequence["documents"]:
            name = sequence["source"], document["file"], document["locator"]
            totals[name] = totals.get(name, 0) + document["tokens"]
    documents = [{"source": s, "file": f, "locator": at, "tokens": tokens} for (s, f, at), tokens in totals.items()]
    return {"manifest": str(manifest.path), **vars(traced), "documents": documents, "sequences": sequences}


def _sequences(manifest: Manifest, located: Located, *, length: int) -> list[dict[str, Any]]:
    catalog = load_catalog(Workdir(manifest.root_path).catalog)
    # Of a foreign file there is a row for each range of it.
    row_of = {(row.path, row.first_token): row for row in catalog.rows if row.split == "train"}
    parts = [manifest.parts[number] for number in located.part_N.tolist()]
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
