"""A manifest as datatrove's token files, a folder for each pool, and the list of folders for nanotron's Nanoset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.exports.bring import bring
from fastmix_data.exports.flat.flat_files import FlatFile, flat_files, num_windows, window_remarks, write_flat
from fastmix_data.exports.flat.foreign_files import NamedFile, named_files
from fastmix_data.exports.format import ExportRequest, Keeps, OnTokens, Receipt
from fastmix_data.exports.pools import pools_of
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.units import format_count
from fastmix_data.workdir import Workdir

NANOSET = "nanoset.json"


@dataclass(frozen=True)
class _WriteFile(FlatFile):
    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Write tokens, ends of documents, the metadata, and the mask where the source has one."""
        manifest, stem = request.manifest, f"{self.pool}/{self.number:05d}.ds"
        names = [stem, f"{stem}.index", f"{stem}.metadata", f"{stem}.loss"]
        tokens, index, metadata, loss = (request.directory / name for name in names)
        has_mask = manifest.parts[self.ranges[0].part].has_mask
        documents = write_flat(self, request, tokens=tokens, mask=loss if has_mask else None, on_tokens=on_tokens)
        with atomic_file(index) as file:
            file.write(np.append(documents.start_D[1:], self.num_tokens).astype("<u8").data)
        _write_metadata(metadata, request, self)
        return {"files": names if has_mask else names[:-1]}


@dataclass(frozen=True)
class _LinkFile(NamedFile):
    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Link to tokens, ends of documents and mask: a pool is a folder. The metadata name our tokenizer, as those of other pools."""
        stem = f"{self.pool}/{self.number:05d}.ds"
        given = {stem: self.tokens, f"{stem}.index": f"{self.tokens}.index"} | ({f"{stem}.loss": self.mask} if self.mask else {})
        for name, path in given.items():
            bring(Path(path), name, directory=request.directory, files=request.files)
        _write_metadata(request.directory / f"{stem}.metadata", request, self)
        on_tokens(self.num_tokens)
        return {"files": [*given, f"{stem}.metadata"]}


class _Datatrove:
    name = "datatrove"
    reader = "datatrove 0.10; nanotron's Nanoset"
    writes = (
        f"a folder of .ds, .ds.index, .ds.metadata and .ds.loss for each pool, and {NANOSET}; imported .ds files of sources in whole "
        "epochs are links"
    )
    runs_in: Literal["threads", "processes"] = "threads"
    keeps = Keeps(
        order="no: Nanoset shuffles, and datatrove reads a folder from end to end",
        shares="yes",
        epochs="yes, of every window: a folder is listed once for each",
        masks="in `.ds.loss`, which its data sets do not read",
        examples="in `.ds.index`: `return_positions` begins anew with each",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        manifest = request.manifest
        window = _window_tokens(manifest)
        remarks = window_remarks(manifest, request.once(_files), window_tokens=window)
        if manifest.has_masks:
            remarks += [
                "masks are in .ds.loss, which neither datatrove's data sets nor Nanoset read: every token carries loss there",
                f"windows of seq_len + 1 = {window} tokens cut examples that were packed into windows of {manifest.example_tokens}",
            ]
        return remarks

    def tasks(self, request: ExportRequest) -> Sequence[_WriteFile | _LinkFile]:
        return [file for of_pool in request.once(_files).values() for file in of_pool]

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:  # noqa: ARG002
        manifest = request.manifest
        windows = num_windows(request.once(_files), window_tokens=_window_tokens(manifest))
        # An epoch of Nanoset is as many samples as its folders have, and the next one takes the same again. By weights alone it would
        # thus never come to the end of a folder of small weight; a folder that is listed as often as it is read comes up exactly so often.
        folders = [pool.name for pool in pools_of(manifest) for _ in range(pool.repeats) if windows[pool.name]]
        weights = [windows[name] for name in folders]
        contents = {
            # As in nanotron's own configuration, where they stand under `data_stages[].data` and at the top.
            "dataset": {"dataset_folder": [str(request.directory / name) for name in folders], "dataset_weights": weights},
            "tokens": {"sequence_length": manifest.block_tokens},
            "num_samples": sum(weights),
        }
        write_json(request.directory / NANOSET, contents)
        return (NANOSET,)


FORMAT = _Datatrove()


def _files(request: ExportRequest) -> Mapping[str, Sequence[_WriteFile | _LinkFile]]:
    def is_own(part: Part) -> bool:
        return part.path.endswith(".ds") and (request.root / f"{part.path}.index").is_file()

    named = named_files(request, _LinkFile, is_own=is_own)
    return flat_files(request, _WriteFile, window_tokens=_window_tokens(request.manifest), named=named)


def _write_metadata(path: Path, request: ExportRequest, written: FlatFile | NamedFile) -> None:
    # nanotron loads its tokenizer by this name, and refuses folders of different ones.
    tokenizer = f"{Workdir(request.root).tokenizer.parent}|{np.dtype(written.dtype).itemsize}"
    with atomic_file(path) as file:
        file.write(f"{tokenizer}\n{written.num_tokens}\n{format_count(written.num_tokens)} tokens".encode())


def _window_tokens(manifest: Manifest) -> int:
    """A sequence and the label of its last token, which is not the first token of the next one."""
    return manifest.block_tokens + 1
