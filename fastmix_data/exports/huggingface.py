"""A manifest as a data set of the Hugging Face hub: Parquet with a row per block, a card, and a script that makes the training
stream of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any, Literal

from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.errors import MismatchError
from fastmix_data.exports.format import ExportRequest, Keeps, Receipt
from fastmix_data.exports.parquet.card import CARD, dataset_card
from fastmix_data.exports.parquet.rows import TOKEN_ID_LIMIT, WriteRows, files_of_pool, num_rows, write_order
from fastmix_data.exports.pools import pools_of
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.written_order import order_of

PLAN, ORDER, SCRIPT = "interleave.json", "order.npy", "interleave.py"


class _HuggingFace:
    name = "huggingface"
    reader = "datasets 5.2, its interleave_datasets"
    writes = "Parquet with a row per block, a dataset card, and a script that makes the training stream"
    runs_in: Literal["threads", "processes"] = "processes"
    keeps = Keeps(
        order="yes; drawn anew where it streams",
        shares="yes",
        epochs="yes",
        masks="yes, as `loss_mask`",
        examples="yes, as `starts`",
        phases="yes; drawn as one where it streams",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        manifest = request.manifest
        if manifest.vocab_size > TOKEN_ID_LIMIT:
            problem = f"has token ids up to {manifest.vocab_size - 1:,}, and input_ids are int32"
            raise MismatchError(manifest.path, problem, "export with --to webdataset, which keeps the shards' own type")
        order_of(manifest, sequence_length=manifest.block_tokens)  # refuses a rest of a run that was read in shorter sequences
        parts = [part for pool in pools_of(manifest) for part in pool.parts]
        without = sum(part.num_blocks - num_rows(part, manifest.block_tokens) for part in parts)
        if not without:
            return ()
        return (
            f"{without} last blocks of one token have no label and no row; that token is the label at the end of the row before",
        )

    def tasks(self, request: ExportRequest) -> Sequence[WriteRows]:
        return [file for pool in pools_of(request.manifest) for file in files_of_pool(request, pool)]

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:  # noqa: ARG002
        pools, directory = pools_of(request.manifest), request.directory
        write_json(directory / PLAN, _plan(request.manifest))
        write_order(directory / ORDER, request.manifest)
        for name, content in (
            (SCRIPT, (files("fastmix_data.exports.parquet") / SCRIPT).read_bytes()),
            (CARD, dataset_card(request.manifest, pools).encode()),
        ):
            with atomic_file(directory / name) as file:
                file.write(content)
        return (SCRIPT, CARD, PLAN, ORDER)


FORMAT = _HuggingFace()


def _plan(manifest: Manifest) -> dict[str, Any]:
    """What the script reads: data sets of each source with their repeats, whole passes before the incomplete one."""
    sources = [
        {
            "name": source,
            "pools": [
                {
                    "config": pool.name,
                    "repeats": pool.repeats,
                    "rows": sum(num_rows(part, manifest.block_tokens) for part in pool.parts),
                }
                for pool in pools
            ],
        }
        for source, pools in groupby(pools_of(manifest), key=lambda pool: pool.source)
    ]
    return {"manifest": manifest.sha256, "seed": manifest.seed, "sources": sources}
