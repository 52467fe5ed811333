"""Receipts: what a finished partition was made from and what came out; and what they say of a workdir.

A receipt is written last, so a partition with one is complete. From receipts follows what is still to do, whether the input is what
it was, and which files are left over from a run that was stopped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.arrays import UInt64s
from fastmix_data.atomic_files import PARTIAL_SUFFIX, hash_of, read_json, write_json
from fastmix_data.errors import CorruptArtefactError, MismatchError
from fastmix_data.foreign.identity import sampled_identity
from fastmix_data.messages import and_more
from fastmix_data.shards.catalog import ShardRow
from fastmix_data.workdir import Workdir
from pipelines.inputs.partitions import Partition
from pipelines.inputs.streams import hash_of_range
from pipelines.inputs.token_files import TokenInputs
from pipelines.preprocess.plan import PreprocessPlan, without_sample
from pipelines.preprocess.sampling.thinning import SampleCount

SCHEMA_VERSION = 2
_REMEDY = "run `fastmix preprocess --replace` to make them anew, or name another workdir"


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
        documents: path of its documents table in the workdir; empty of an import.
        valid_hashes: hashes of the documents of its own valid split, base64 of little-endian uint64.
        first_bad_record: place and fault of the first record that was left out as bad.
        quarantine: path of the bad records in the workdir, if there are any and they were to be kept.
        sample: counts of its training documents, if only some of them were tokenized.
    """

    label: str
    fingerprint: str
    held_out_hash: str
    files: tuple[FileFingerprint, ...]
    shards: tuple[ShardRow, ...]
    documents: str
    counts: dict[str, int]
    valid_hashes: str
    first_bad_record: str = ""
    quarantine: str = ""
    sample: SampleCount | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def holds_out(self) -> bool:
        """Whether anything of it is held out and there: documents, or blocks of tokens that were there already."""
        return any(row.split == "valid" for row in self.shards)

    @property
    def num_tokens(self) -> int:
        """Tokens of both splits."""
        return sum(row.num_tokens for row in self.shards)

    def held_out(self) -> UInt64s:
        """Hashes of the documents of its valid split."""
        return np.frombuffer(base64.b64decode(self.valid_hashes), "<u8")

    def suits(self, on_bad_record: str) -> bool:
        """Whether the recipe's way with bad records would give the same: any does where there are none."""
        if not self.first_bad_record:
            return True
        return on_bad_record == ("quarantine" if self.quarantine else "skip")

    def outputs_are_there(self, root: Path, *, shards_are_elsewhere: bool = False) -> bool:
        """Whether every file it speaks of exists in its full size; content is the business of `fastmix verify`.

        Args:
            shards_are_elsewhere: shards may be missing; who reads them from where they are checks them there.
        """
        paths = {(root / row.path, row.bytes) for row in self.shards}  # ranges of one file have a row each
        others = [name for name in (self.documents, self.quarantine) if name]
        return all((root / path).is_file() for path in others) and all(
            path.stat().st_size == size if path.is_file() else shards_are_elsewhere for path, size in paths
        )


def save_receipt(workdir: Workdir, receipt: Receipt) -> None:
    """Write a receipt atomically."""
    write_json(workdir.receipt_of(receipt.label), asdict(receipt))


def load_receipts(workdir: Workdir) -> dict[str, Receipt]:
    """All receipts of a workdir by label.

    Raises:
        CorruptArtefactError: one is not a receipt.
    """
    return {path.stem: _load(path) for path in sorted(workdir.receipts.glob("*.json"))}


def _load(path: Path) -> Receipt:
    content: dict[str, Any] = read_json(path)
    try:
        if content["schema_version"] != SCHEMA_VERSION:
            problem = f"receipt of schema version {content['schema_version']}, this is {SCHEMA_VERSION}"
            raise CorruptArtefactError(path, problem, "run `fastmix preprocess --replace`")
        content["files"] = tuple(FileFingerprint(**file) for file in content["files"])
        content["shards"] = tuple(ShardRow(**row) for row in content["shards"])
        content["sample"] = SampleCount(**content["sample"]) if content.get("sample") else None
        return Receipt(**content)
    except (KeyError, TypeError) as error:
        raise CorruptArtefactError(path, "not a receipt", "delete it and run `fastmix preprocess` again") from error


def fingerprint_files(partition: Partition) -> tuple[FileFingerprint, ...]:
    """Read and hash a partition's input; for remote files and datasets the store's own version stands for the content.

    Of tokens that are there already a sample is hashed, see `foreign/identity.py`.
    """
    if partition.tokens is not None:
        return tuple(
            FileFingerprint(name, path.stat().st_size, str(path.stat().st_mtime_ns), sampled_identity([path]))
            for path, name in partition.tokens.watched
        )
    if partition.dataset is not None:
        dataset = partition.dataset
        return (FileFingerprint(dataset.name, dataset.num_bytes, dataset.version, ""),)
    # Partitions that no range is given of are of whole files.
    return tuple(
        FileFingerprint(
            file.name,
            file.num_bytes,
            file.version,
            "" if file.is_remote else hash_of_range(file.path, partition.hash_start, partition.hash_stop or file.num_bytes),
        )
        for file in partition.files
    )


def changed_file(partition: Partition, receipt: Receipt) -> str | None:
    """Name of a file that is not what it was when the receipt was written, or None.

    Equal size and time of modification count as unchanged; another time alone does not count as changed: the content decides.
    """
    before = {file.name: file for file in receipt.files}
    if partition.dataset is not None:
        known = before.get(partition.dataset.name)
        return None if known is not None and known.version == partition.dataset.version else partition.dataset.name
    if partition.tokens is not None:
        return _changed_import(partition.tokens, before)
    is_touched = False
    for file in partition.files:
        known = before.get(file.name)
        if known is None or known.num_bytes != file.num_bytes:
            return file.name
        if known.version != file.version:
            if file.is_remote:
                return file.name
            is_touched = True
    # A copy or a fresh checkout has new times and the old bytes. To read them is cheaper than to encode them.
    if is_touched:
        for now in fingerprint_files(partition):
            if now.content_hash != before[now.name].content_hash:
                return now.name
    return None


def _changed_import(tokens: TokenInputs, before: Mapping[str, FileFingerprint]) -> str | None:
    for path, name in tokens.watched:
        known, status = before.get(name), path.stat()
        if known is None or known.num_bytes != status.st_size:
            return name
        if known.version != str(status.st_mtime_ns) and known.content_hash != sampled_identity([path]):
            return name
    return None


def changed_files(plan: PreprocessPlan, receipts: Mapping[str, Receipt]) -> dict[str, str]:
    """Labels of the partitions that a receipt no longer speaks of, each with the first file that changed."""
    pairs = [(partition, receipts[partition.label]) for partition in plan.all_partitions() if partition.label in receipts]
    return {partition.label: name for partition, receipt in pairs if (name := changed_file(partition, receipt)) is not None}


def require_same_recipe(plan: PreprocessPlan, *, completes_sample: bool = False) -> None:
    """Refuse a recipe that differs from the one the workdir's shards were made from.

    Args:
        completes_sample: the shards may be those of a sample, of which the plan is the whole.
    Raises:
        MismatchError: names the keys that differ.
    """
    path = plan.workdir.preprocess_recipe
    if not path.exists():
        return
    made_from = read_json(path)
    before, now = _flat(without_sample(made_from) if completes_sample else made_from), _flat(plan.sections)
    differences = [
        f"{key} was {before.get(key, 'not given')!r}, is {now.get(key, 'not given')!r}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if differences:
        listed = and_more(differences, separator="; ")
        is_about_sample = any(key.startswith("shards.sample") for key in before.keys() ^ now.keys())
        remedy = f"run `fastmix preprocess --all` for the whole, {_REMEDY}" if is_about_sample else _REMEDY
        raise MismatchError(plan.workdir.root, f"its shards were made from another recipe: {listed}", remedy)


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping) or not content:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    # A key that is not given and one that a newer version adds, with None as its default, are the same.
    return {key: value for key, value in flat.items() if value is not None}


def require_same_files(plan: PreprocessPlan, receipts: Mapping[str, Receipt], changed: Mapping[str, str]) -> None:
    """Refuse source files that are not what the workdir's shards were made from.

    Args:
        changed: of `changed_files`.
    Raises:
        MismatchError: names the first file that was added, removed or changed.
    """
    root = plan.workdir.root
    planned = {name for partition in plan.all_partitions() for name in _names(partition)}
    known = {file.name for receipt in receipts.values() for file in receipt.files}
    for name in sorted(known - planned):
        raise MismatchError(name, f"was removed since the shards in {root} were made from it", f"put it back, {_REMEDY}")
    # Without a catalog the run was stopped, and a file without a receipt may just not have had its turn.
    for name in sorted(planned - known) if plan.workdir.catalog.exists() else ():
        raise MismatchError(name, f"was added since the shards in {root} were made", _REMEDY)
    for name in changed.values():
        raise MismatchError(name, f"changed since the shards in {root} were made from it", _REMEDY)


def _names(partition: Partition) -> Sequence[str]:
    if partition.tokens is not None:
        return [name for _, name in partition.tokens.watched]
    return [partition.dataset.name] if partition.dataset is not None else [file.name for file in partition.files]


def remove_leftovers(workdir: Workdir, receipts: Mapping[str, Receipt]) -> None:
    """Remove half-written files, and shards, tables, bad records and receipts that none of the given receipts speaks of."""
    kept = {workdir.root / row.path for receipt in receipts.values() for row in receipt.shards}
    kept |= {workdir.root / path for receipt in receipts.values() for path in (receipt.documents, receipt.quarantine)}
    kept |= {workdir.receipt_of(label) for label in receipts}
    tokenizer = workdir.tokenizer.parent
    for folder in (workdir.shards, workdir.documents, workdir.receipts, workdir.quarantine, tokenizer):
        for path in sorted(folder.rglob("*")):
            # By ending: what a user has put beside ours stays.
            is_left_over = folder != tokenizer and path.suffix in (".tar", ".parquet", ".json", ".jsonl") and path not in kept
            if path.is_file() and (is_left_over or path.name.endswith(PARTIAL_SUFFIX)):
                path.unlink()
    for path in workdir.root.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink()


def hash_of_inputs(receipts: Iterable[Receipt]) -> str:
    """Hash of the content of everything that was read."""
    return hash_of(
        [
            [(file.name, file.num_bytes, file.content_hash or file.version) for file in receipt.files]
            for receipt in sorted(receipts, key=lambda receipt: receipt.label)
        ]
    )
