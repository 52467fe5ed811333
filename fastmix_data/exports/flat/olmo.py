"""A manifest as OLMo-core reads it: headerless token files with label masks and documents beside them, and its data set's configuration."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.exports.flat.flat_files import Documents, FlatFile, flat_files, window_remarks, write_flat
from fastmix_data.exports.flat.foreign_files import NamedFile, named_files
from fastmix_data.exports.format import ExportRequest, Keeps, OnTokens, Receipt
from fastmix_data.exports.pools import Pool, common_dtype, pools_of
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.workdir import Workdir

DATASET, MIXTURE = "dataset.json", "source_mixture.json"


@dataclass(frozen=True)
class _WriteFile(FlatFile):
    # Names by which OLMo-core's own scripts find tokens and masks with a glob; its reader looks for documents under .csv.gz.
    @property
    def tokens(self) -> str:
        return f"{self.pool}/token_ids_part_{self.number:05d}.npy"

    @property
    def mask(self) -> str:
        return f"{self.pool}/labels_mask_part_{self.number:05d}.npy"

    @property
    def documents(self) -> str:
        return f"{self.pool}/token_ids_part_{self.number:05d}.csv.gz"

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Write tokens, the mask if any source of the manifest has one, and the table of documents."""
        directory, mask = request.directory, self.mask if self.any_masks else None
        documents = write_flat(
            self,
            request,
            tokens=directory / self.tokens,
            mask=None if mask is None else directory / mask,
            on_tokens=on_tokens,
        )
        _write_documents(directory / self.documents, documents, request.manifest, num_tokens=self.num_tokens)
        return {"files": [self.tokens, self.documents, *([mask] if mask else [])]}


class _Olmo:
    name = "olmo"
    reader = "OLMo-core 3.0"
    writes = (
        f"token files, label masks, tables of documents, {DATASET}, and {MIXTURE} where nothing has a mask; imported .npy files of "
        "sources in whole epochs are named where they lie"
    )
    runs_in: Literal["threads", "processes"] = "threads"
    keeps = Keeps(
        order="no: OLMo-core shuffles the windows by its own seed",
        shares="yes",
        epochs="yes, of every window",
        masks="yes, as `label_mask_paths`",
        examples="in `.csv.gz`, which its packed data sets read and the plain ones do not",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        manifest = request.manifest
        remarks = window_remarks(manifest, request.once(_files), window_tokens=manifest.block_tokens)
        if manifest.has_masks:
            remarks += [
                f"there is no {MIXTURE}: source mixtures of OLMo-core take no label masks; {DATASET} has them",
                f"examples of a window see each other, and sequence_length has to be a multiple of {manifest.example_tokens}, "
                "the window that they are packed into",
            ]
        return remarks

    def tasks(self, request: ExportRequest) -> Sequence[_WriteFile]:
        return [file for files in request.once(_files).values() for file in files if isinstance(file, _WriteFile)]

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:  # noqa: ARG002
        files, pools = request.once(_files), pools_of(request.manifest)
        write_json(request.directory / DATASET, _dataset(request, pools, files))
        if request.manifest.has_masks:
            return (DATASET,)
        write_json(request.directory / MIXTURE, _mixture(request, pools, files))
        return (DATASET, MIXTURE)


FORMAT = _Olmo()


def _files(request: ExportRequest) -> Mapping[str, Sequence[_WriteFile | NamedFile]]:
    any_masks = request.manifest.has_masks

    def is_own(part: Part) -> bool:
        # It looks for documents beside .npy alone; and where any file has a mask, all need one.
        return part.path.endswith(".npy") and bool(part.mask_path) == any_masks

    named = named_files(request, NamedFile, is_own=is_own)
    return flat_files(request, _WriteFile, window_tokens=request.manifest.block_tokens, named=named)


def _write_documents(path: Path, documents: Documents, manifest: Manifest, *, num_tokens: int) -> None:
    """Rows of start, end, number, shard and position in the shard; no header, as OLMo-core wants it, and no rows of padding."""
    columns = (documents.start_D, documents.is_padding_D, documents.part_D, documents.position_D)
    counting = count()
    rows = (
        (start, end, next(counting), manifest.parts[part].path, position)
        for end, start, padding, part, position in zip(np.append(documents.start_D[1:], num_tokens), *columns, strict=True)
        if not padding
    )
    # No time and no name: equal tokens give equal bytes.
    with atomic_file(path) as file, gzip.GzipFile("", "wb", 6, fileobj=file, mtime=0) as zipped, io.TextIOWrapper(zipped) as text:
        csv.writer(text, lineterminator="\n").writerows(rows)


def _configuration(request: ExportRequest) -> dict[str, Any]:
    manifest = request.manifest
    return {
        "_CLASS_": "olmo_core.data.numpy_dataset.NumpyFSLDatasetConfig",
        "tokenizer": {
            "vocab_size": manifest.vocab_size,
            "eos_token_id": manifest.eos_id,
            "pad_token_id": manifest.eos_id,  # required, and not used: these data sets pad nothing
            "identifier": str(Workdir(request.root).tokenizer.parent),
        },
        "sequence_length": manifest.block_tokens,
        "dtype": common_dtype(manifest).name,
    }


def _dataset(
    request: ExportRequest, pools: Sequence[Pool], files: Mapping[str, Sequence[_WriteFile | NamedFile]]
) -> dict[str, Any]:
    """Every file as often as its pool is read; a path that is absolute stays what it is."""
    listed = [(pool.source, file) for pool in pools for _ in range(pool.repeats) for file in files[pool.name]]
    dataset = _configuration(request) | {
        "paths": [str(request.directory / file.tokens) for _, file in listed],
        "metadata": [{"label": source} for source, _ in listed],
    }
    if request.manifest.has_masks:
        dataset["label_mask_paths"] = [str(request.directory / (file.mask or "")) for _, file in listed]
    return dataset


def _mixture(
    request: ExportRequest, pools: Sequence[Pool], files: Mapping[str, Sequence[_WriteFile | NamedFile]]
) -> dict[str, Any]:
    """A pool as a source of which a whole number of passes is wanted: then every window is read exactly so often."""
    manifest = request.manifest
    sources = [
        {
            "source_name": pool.name,
            "target_ratio": _ratio(pool.repeats * pool.num_tokens, manifest.num_tokens),
            "paths": [str(request.directory / file.tokens) for file in files[pool.name]],
            "max_repetition_ratio": float(pool.repeats),
            "max_source_fraction": 1.0,
        }
        for pool in pools
    ]
    mixture = {
        "source_list": {"sources": sources},
        "requested_tokens": manifest.num_tokens,
        # In tokens; a run has its own, of which this and all others are multiples.
        "global_batch_size": manifest.block_tokens,
        "processes": 1,
        "seed": manifest.seed,
    }
    return _configuration(request) | {"source_mixture_config": mixture}


def _ratio(tokens: int, total: int) -> float:
    """The smallest ratio of which OLMo-core, which rounds its product with the total down, makes exactly `tokens`.

    >>> int(55 * (7 / 55)), int(55 * _ratio(7, 55))
    (6, 7)
    """
    ratio = tokens / total
    while int(total * ratio) < tokens:
        ratio = math.nextafter(ratio, 2.0)
    return ratio
