"""Held-out tokens beside a manifest, for trainers whose formats name a validation split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastmix_data.errors import MismatchError
from fastmix_data.exports.format import ExportRequest
from fastmix_data.manifest.parts import Part
from fastmix_data.shards.catalog import ShardRow, load_catalog
from fastmix_data.workdir import CATALOG_FILE


@dataclass(frozen=True)
class HeldOut:
    """The held-out shards of a manifest's sources.

    Attributes:
        parts: by source, in the manifest's order; only sources that have some.
        remarks: why there are none, if there are none.
    """

    parts: Mapping[str, tuple[Part, ...]]
    remarks: tuple[str, ...] = ()


def held_out_of(request: ExportRequest) -> HeldOut:
    """Find the held-out shards in the catalog where the shards are, if that is still the one that the manifest was made from.

    The manifest does not record them, so whoever reads them checks them with `check_unchanged`.
    """
    path = request.root / CATALOG_FILE
    try:
        catalog = load_catalog(path)
    except MismatchError:
        return HeldOut({}, (f"no validation split is written: there is no {path}",))
    if catalog.fingerprint != request.manifest.catalog_hash:
        problem = f"{path} is not the catalog that the manifest was made from"
        return HeldOut({}, (f"no validation split is written: {problem}",))
    rows = {source.name: catalog.shards(source.name, "valid") for source in request.manifest.sources}
    return HeldOut({name: tuple(map(_whole, shards)) for name, shards in rows.items() if shards})


def _whole(row: ShardRow) -> Part:
    return Part(
        source=row.source,
        path=row.path,
        sha256=row.sha256,
        bytes=row.bytes,
        dtype=row.dtype,
        has_mask=row.has_mask,
        shard_blocks=row.num_blocks,
        block_start=0,
        block_stop=row.num_blocks,
        pool=-1,  # the manifest draws from none of them
        repeats=1,
        num_tokens=row.num_tokens,
        num_labels=row.num_labels,
        storage=row.storage,
        first_token=row.first_token,
        mask_path=row.mask_path,
    )
