"""Receipts: what a finished partition was made from and what came out. Written last, so a partition with one is complete."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmix_data.artefacts import hash_of, read_json, write_json
from fastmix_data.errors import CorruptArtefactError
from fastmix_data.shards.catalog import ShardRow
from pipelines.preprocess.partitions import Partition
from pipelines.preprocess.streams import hash_of_range

SCHEMA_VERSION = 1
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class FileFingerprint:
    """State of a file, or of the part that a partition reads, when it was read; `content_hash` is empty for remote files."""

    name: str
    num_bytes: int
    version: str
    content_hash: str


@dataclass(frozen=True)
class Receipt:
    """Proof that a partition is done.

    Attributes:
        fingerprint: hash of everything but the input's content that decides the output.
        held_out_hash: hash of the held-out documents of earlier waves, which were kept out of the training split.
        valid_hashes: hashes of the documents of its own valid split, base64 of little-endian uint64.
    """

    label: str
    fingerprint: str
    held_out_hash: str
    files: tuple[FileFingerprint, ...]
    shards: tuple[ShardRow, ...]
    documents: str
    counts: dict[str, int]
    valid_hashes: str
    schema_version: int = SCHEMA_VERSION

    def held_out(self) -> Hashes:
        """Hashes of the documents of its valid split."""
        return np.frombuffer(base64.b64decode(self.valid_hashes), "<u8")

    def outputs_are_there(self, root: Path) -> bool:
        """Whether every file it speaks of exists in its full size; content is the business of `fastmix verify`."""
        paths = [(root / row.path, row.bytes) for row in self.shards]
        return (root / self.documents).is_file() and all(path.is_file() and path.stat().st_size == size for path, size in paths)


def receipt_path(root: Path, label: str) -> Path:
    """Where a partition's receipt lies."""
    return root / "receipts" / f"{label}.json"


def encode_hashes(hashes: Iterable[int]) -> str:
    """The form of `Receipt.valid_hashes`."""
    return base64.b64encode(np.sort(np.fromiter(hashes, "<u8")).tobytes()).decode()


def save_receipt(root: Path, receipt: Receipt) -> None:
    """Write a receipt atomically."""
    write_json(receipt_path(root, receipt.label), asdict(receipt))


def load_receipts(root: Path) -> dict[str, Receipt]:
    """All receipts of a workdir by label.

    Raises:
        CorruptArtefactError: one is not a receipt.
    """
    return {path.stem: _load(path) for path in sorted((root / "receipts").glob("*.json"))}


def _load(path: Path) -> Receipt:
    content: dict[str, Any] = read_json(path)
    try:
        if content["schema_version"] != SCHEMA_VERSION:
            raise CorruptArtefactError(
                f"{path}: receipt of schema version {content['schema_version']}, this is {SCHEMA_VERSION}; run `fastmix preprocess "
                "--replace`"
            )
        content["files"] = tuple(FileFingerprint(**file) for file in content["files"])
        content["shards"] = tuple(ShardRow(**row) for row in content["shards"])
        return Receipt(**content)
    except (KeyError, TypeError) as error:
        raise CorruptArtefactError(f"{path}: not a receipt; delete it and run `fastmix preprocess` again") from error


def fingerprint_files(partition: Partition) -> tuple[FileFingerprint, ...]:
    """Read and hash a partition's input; for remote files and datasets the store's own version stands for the content."""
    if partition.dataset is not None:
        dataset = partition.dataset
        return (FileFingerprint(dataset.name, dataset.num_bytes, dataset.version, ""),)
    return tuple(
        FileFingerprint(
            file.name,
            file.num_bytes,
            file.version,
            "" if file.is_remote else hash_of_range(file.path, *_hashed_range(partition, file.num_bytes)),
        )
        for file in partition.files
    )


def _hashed_range(partition: Partition, num_bytes: int) -> tuple[int, int]:
    return (0, num_bytes) if len(partition.files) > 1 or partition.hash_stop == 0 else (partition.hash_start, partition.hash_stop)


def changed_file(partition: Partition, receipt: Receipt) -> str | None:
    """Name of a file that is not what it was when the receipt was written, or None.

    Equal size and time of modification count as unchanged; another time alone does not count as changed: the content decides.
    """
    was = {file.name: file for file in receipt.files}
    if partition.dataset is not None:
        known = was.get(partition.dataset.name)
        return None if known is not None and known.version == partition.dataset.version else partition.dataset.name
    touched = False
    for file in partition.files:
        known = was.get(file.name)
        if known is None or known.num_bytes != file.num_bytes:
            return file.name
        if known.version != file.version:
            if file.is_remote:
                return file.name
            touched = True
    if touched:
        for now in fingerprint_files(partition):
            if now.content_hash != was[now.name].content_hash:
                return now.name
    return None


def hash_of_inputs(receipts: Iterable[Receipt]) -> str:
    """Hash of the content of everything that was read."""
    return hash_of(
        [
            [(file.name, file.num_bytes, file.content_hash or file.version) for file in receipt.files]
            for receipt in sorted(receipts, key=lambda receipt: receipt.label)
        ]
    )


def hash_of_held_out(hashes: Hashes) -> str:
    """Hash of a set of held-out documents, given sorted."""
    return hash_of([f"{len(hashes)}", base64.b64encode(hashes.astype("<u8").tobytes()).decode()])
