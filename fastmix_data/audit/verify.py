"""Checking artefacts against what they recorded of themselves: every hash, size and count; every problem is listed, not the first."""

from __future__ import annotations

import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.atomic_files import sha256_of_file
from fastmix_data.audit.artefact_kind import catalog_row_of, kind_of
from fastmix_data.audit.recorded_files import RESTORE, Expected, problems_of
from fastmix_data.errors import CorruptArtefactError, FastmixError, InputError
from fastmix_data.foreign.storage import SHARD, Stored, is_foreign
from fastmix_data.manifest.estimated import load_plan
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.messages import first_line
from fastmix_data.progress import progress
from fastmix_data.remote.object_store import ObjectStore
from fastmix_data.results.mixture import load_mixture
from fastmix_data.shards.catalog import Catalog, ShardRow, load_catalog
from fastmix_data.shards.shard_format import ShardLayout, StridedShard
from fastmix_data.units import format_count
from fastmix_data.workdir import ManifestFolder, SearchFolder, Workdir

_PREPROCESS = "run `fastmix preprocess --replace`"
_SEARCH = "run `fastmix search --replace`"
_EMIT = "run `fastmix emit --replace`"


@dataclass
class VerifyReport:
    """What was checked, and everything that is wrong: errors that are collected, not raised."""

    path: str
    kind: str
    num_shards: int = 0
    num_bytes: int = 0
    num_foreign: int = 0
    foreign_bytes: int = 0
    checked: list[str] = field(default_factory=list)
    problems: list[FastmixError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        problems = [{"where": error.where, "what": error.what, "remedy": error.remedy} for error in self.problems]
        return {**vars(self), "problems": problems, "ok": self.ok}

    def __str__(self) -> str:
        head = f"{self.path}: {self.kind}; checked {', '.join(self.checked) or 'nothing'}"
        if self.num_shards:
            head += f" and {self.num_shards} shards of {format_count(self.num_bytes)} bytes"
        if self.num_foreign:
            head += f" and, by samples, {self.num_foreign} imported files of {format_count(self.foreign_bytes)} bytes"
        if self.ok:
            return f"{head}: all as recorded"
        return "\n".join([f"{head}: {len(self.problems)} problem{'s' * (len(self.problems) > 1)}", *map(str, self.problems)])

    def add(self, where: object, what: str, remedy: str) -> None:
        """Note a problem."""
        self.problems.append(CorruptArtefactError(where, what, remedy))


def verify(path: Path, *, store: str | None = None, quiet: bool = False) -> VerifyReport:
    """Check a shard, a catalog, a mixture, a manifest, or a whole workdir.

    Args:
        store: URL or folder that the workdir's shards were copied to, whose bytes are checked in place of theirs.

    Raises:
        InputError: the path does not exist or is no artefact, or the store cannot be reached. Everything else that is wrong is in the
            report.
    """
    objects = ObjectStore(store) if store is not None else None
    try:
        kind = kind_of(path)
    except CorruptArtefactError as error:
        return VerifyReport(str(path), "file", problems=[error])
    report = VerifyReport(str(path), kind)
    shards: dict[str, Expected] = {}
    if kind == "shard":
        _verify_shard(path, report, shards)
    elif kind == "catalog":
        _verify_catalog(path, report, shards)
    elif kind == "mixture":
        _verify_mixture(path, report, None)
    elif kind == "manifest":
        _verify_manifest(path, report, shards)
    elif kind == "plan":
        _verify_plan(ManifestFolder(path) if path.is_dir() else ManifestFolder(path.parent), report, None)
    else:
        workdir = Workdir(path)
        catalog = _verify_catalog(workdir.catalog, report, shards)
        if workdir.search.mixture.is_file():
            _verify_mixture(workdir.search.mixture, report, catalog)
        if workdir.manifest.plan.is_file() and not workdir.manifest.manifest.is_file():
            _verify_plan(workdir.manifest, report, catalog)
        elif workdir.manifest.root.is_dir():
            _verify_manifest(workdir.manifest.root, report, shards)
    _verify_files(list(shards.values()), report, objects=objects, quiet=quiet)
    return report


def _verify_files(expected: list[Expected], report: VerifyReport, *, objects: ObjectStore | None, quiet: bool) -> None:
    foreign = [file for file in expected if file.is_sampled]
    report.num_shards, report.num_bytes = len(expected) - len(foreign), sum(f.stored.bytes for f in expected if not f.is_sampled)
    report.num_foreign, report.foreign_bytes = len(foreign), sum(file.stored.bytes for file in foreign)
    with progress("verify", total=report.num_bytes, unit="B", quiet=quiet or not expected) as advance:
        report.problems += problems_of(expected, objects=objects, advance=advance)


def _verify_shard(path: Path, report: VerifyReport, shards: dict[str, Expected]) -> None:
    """Walk through the tar; its hash too if a catalog above knows the shard."""
    try:
        known = catalog_row_of(path)
        if known is not None:
            catalog, row = known
            shards[str(path.resolve())] = Expected(catalog.root, row)
            _verify_row(row, catalog.layout(row), report)
            report.checked.append(f"the row in {Workdir(catalog.root).catalog}")
        shard = StridedShard.detect(path)
    except FastmixError as error:
        report.problems.append(error)
        return
    report.checked.append("every member of the tar")
    try:
        with tarfile.open(path, "r:") as tar:
            names = [info.name for info in tar]
    except tarfile.TarError as error:
        report.add(path, f"the tar is damaged ({error})", RESTORE)
        return
    expected = [f"{shard.key(block)}.{member.name}" for block in range(shard.num_blocks) for member in shard.layout.members]
    if names != expected:
        wrong = next((n for n, (a, b) in enumerate(zip(names, expected, strict=False)) if a != b), min(len(names), len(expected)))
        report.add(path, f"member {wrong} of {len(expected)} is not where its stride puts it", RESTORE)
    # Of a tar alone nothing is recorded but what follows from its layout: names in order, none twice.
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        report.add(path, f"{repeated[0]} occurs more than once", RESTORE)


def _verify_catalog(path: Path, report: VerifyReport, shards: dict[str, Expected]) -> Catalog | None:
    try:
        catalog = load_catalog(path)
    except CorruptArtefactError as error:
        report.problems.append(error)
        return None
    report.checked.append("catalog")
    for (repeated, first), count in Counter((row.path, row.first_token) for row in catalog.rows).items():
        if count > 1:
            at = f" from token {first} on" if first else ""
            report.add(path, f"{repeated}{at} has {count} rows", _PREPROCESS)
    root = catalog.root.resolve()
    for row in catalog.rows:
        _verify_row(row, catalog.layout(row), report)
        shards.setdefault(str(root / row.path), Expected(catalog.root, row))
    known = {*catalog.sources, *catalog.targets_from_files}
    for name in sorted({row.source for row in catalog.rows} - known):
        report.add(path, f"has shards of {name}, which is neither a source nor a target", _PREPROCESS)
    for name in catalog.sources:
        if not catalog.shards(name, "train"):
            report.add(path, f"source {name} has no training shard", _PREPROCESS)
    workdir = Workdir(catalog.root)
    if workdir.tokenizer.is_file():
        report.checked.append("tokenizer")
        if sha256_of_file(workdir.tokenizer) != catalog.info.tokenizer_sha256:
            report.add(workdir.tokenizer, "is not the tokenizer that the shards were made with", "restore it from a copy")
    if workdir.documents.is_dir():
        report.checked.append("documents")
        _verify_documents(catalog, workdir.documents, report)
    return catalog


def _verify_row(row: ShardRow, layout: ShardLayout, report: VerifyReport) -> None:
    # Blocks are full but for the last, which holds at least one token.
    most = row.num_blocks * layout.block_tokens
    counts_fit = (
        most - layout.block_tokens < row.num_tokens <= most
        and 0 <= row.num_loss_tokens <= row.num_labels <= row.num_tokens
        and 0 <= row.num_padding <= (row.num_tokens - row.num_loss_tokens if row.has_mask else 0)
    )
    if not counts_fit or not _size_fits(row, layout, row.num_blocks):
        report.add(
            row.path,
            f"its row in the catalog contradicts itself ({row.num_blocks} blocks, {row.num_tokens} tokens, {row.num_labels} labels, "
            f"{row.num_loss_tokens} with loss, {row.num_padding} of padding, {row.bytes} bytes)",
            _PREPROCESS,
        )


def _size_fits(stored: Stored, layout: ShardLayout, num_blocks: int) -> bool:
    """Whether a file of its size holds what a row or part speaks of."""
    if not is_foreign(stored.storage):
        return stored.bytes == layout.num_bytes(num_blocks)
    # Tokens of MDS may be wider in the file than they are read as, never narrower.
    return stored.bytes >= (stored.first_token + num_blocks * layout.block_tokens + 1) * layout.dtype.itemsize


def _verify_documents(catalog: Catalog, folder: Path, report: VerifyReport) -> None:
    """Documents of each shard, and tokens of each source and split, against the catalog's counts."""
    per_shard: Counter[str] = Counter()
    tokens: Counter[tuple[str, str]] = Counter()
    for path in sorted(folder.glob("*.parquet")):
        try:
            table = pq.read_table(path, columns=["source", "split", "shard", "num_tokens"])
        except (pa.ArrowInvalid, OSError) as error:
            report.add(path, f"cannot be read ({first_line(error)})", _PREPROCESS)
            return
        counted = table.group_by(["source", "split", "shard"]).aggregate([("num_tokens", "sum"), ("num_tokens", "count")])
        for row in counted.to_pylist():
            per_shard[row["shard"]] += row["num_tokens_count"]
            tokens[row["source"], row["split"]] += row["num_tokens_sum"]
    for shard in (row for row in catalog.rows if row.storage == SHARD):
        if per_shard[shard.path] != shard.num_documents:
            problem = f"the catalog counts {shard.num_documents} documents, their table {per_shard[shard.path]}"
            report.add(shard.path, problem, _PREPROCESS)
    for (source, split), rows in catalog.by_split.items():
        if any(row.storage != SHARD for row in rows):
            continue  # of imports there are no tables
        in_catalog, in_tables = sum(row.num_tokens - row.num_padding for row in rows), tokens[source, split]
        if in_tables != in_catalog:
            problem = f"{split} documents of {source} have {in_tables} tokens, the catalog counts {in_catalog}"
            report.add(folder, problem, _PREPROCESS)


def _verify_mixture(path: Path, report: VerifyReport, catalog: Catalog | None) -> None:
    report.checked.append("mixture")
    try:
        mixture = load_mixture(path)
        if catalog is not None:
            mixture.weights_K(catalog.sources)
    except FastmixError as error:
        report.problems.append(error)
        return
    origin = mixture.made_from
    if catalog is not None and origin.catalog and not catalog.is_or_completes(origin.catalog):
        report.add(path, "was searched on another catalog than the one that is here", _SEARCH)
    trajectory = SearchFolder(path.parent).trajectory
    if origin.trajectory and (not trajectory.is_file() or sha256_of_file(trajectory) != origin.trajectory):
        report.add(trajectory, "is not the trajectory that the mixture was averaged from", _SEARCH)


def _verify_plan(folder: ManifestFolder, report: VerifyReport, catalog: Catalog | None) -> None:
    """A plan names no blocks: it has its own hash, and the catalog that its sizes are from."""
    report.checked.append("the plan of a manifest")
    try:
        plan = load_plan(folder.plan)
    except CorruptArtefactError as error:
        report.problems.append(error)
        return
    if catalog is not None and plan.catalog_hash != catalog.fingerprint:
        report.add(folder.plan, "was made from another catalog than the one that is here", _EMIT)


def _verify_manifest(path: Path, report: VerifyReport, shards: dict[str, Expected]) -> None:
    report.checked.append("manifest")
    try:
        manifest = load_manifest(path)
    except (CorruptArtefactError, InputError) as error:
        report.problems.append(error)
        return
    root = manifest.root_path.resolve()
    per_pass = [0] * len(manifest.pools)
    for part in manifest.parts:
        identity = str(root / part.path)
        # A shard of several parts, or of the catalog too, is hashed once.
        if identity not in shards:
            shards[identity] = Expected(manifest.root_path, part)
        elif shards[identity].stored.sha256 != part.sha256:
            report.add(manifest.path, f"has another sha256 for {part.path} than its catalog", _EMIT)
        if _verify_part(part, manifest, report):
            per_pass[part.pool] += part.num_tokens
    _verify_sums(manifest, per_pass, report)
    catalog = Workdir(manifest.root_path).catalog
    if catalog.is_file():
        try:
            if load_catalog(catalog).fingerprint != manifest.catalog_hash:
                report.add(manifest.path, f"was made from another catalog than {catalog}", _EMIT)
        except CorruptArtefactError as error:
            report.problems.append(error)


def _verify_part(part: Part, manifest: Manifest, report: VerifyReport) -> bool:
    """Whether a part is of a pool of the manifest."""
    inside = 0 <= part.block_start < part.block_stop <= part.shard_blocks and part.repeats > 0
    most = part.num_blocks * manifest.block_tokens
    counted = most - manifest.block_tokens < part.num_tokens <= most and part.num_labels <= part.num_tokens
    if not inside or not counted or not _size_fits(part, manifest.layout(part), part.shard_blocks):
        problem = f"blocks {part.block_start} to {part.block_stop} of {part.path} contradict themselves"
        report.add(manifest.path, problem, _EMIT)
    has_pool = 0 <= part.pool < len(manifest.pools)
    if not has_pool or (manifest.pools[part.pool].source, manifest.pools[part.pool].repeats) != (part.source, part.repeats):
        report.add(manifest.path, f"blocks {part.block_start} to {part.block_stop} of {part.path} fit no pool", _EMIT)
    return has_pool


def _verify_sums(manifest: Manifest, per_pass: list[int], report: VerifyReport) -> None:
    """Parts against pools, pools against phases and sources, and those against the whole."""
    totals: Counter[str] = Counter()
    of_phase: Counter[tuple[int, str]] = Counter()
    for number, (pool, tokens) in enumerate(zip(manifest.pools, per_pass, strict=True)):
        # Of a pool that is drawn from in part, only the order knows which sequences those are.
        expected = tokens * pool.repeats if pool.is_whole else pool.num_tokens if pool.num_tokens <= tokens * pool.repeats else -1
        if pool.num_tokens != (0 if pool.is_marker else expected):
            problem = f"pool {number} ({pool.source}) states {pool.num_tokens} tokens, its parts have {tokens * pool.repeats}"
            report.add(manifest.path, problem, _EMIT)
        totals[pool.source] += pool.num_tokens
        of_phase[pool.phase, pool.source] += pool.num_tokens
    stated = {(n, name): tokens for n, phase in enumerate(manifest.phases) for name, tokens in phase.tokens.items() if tokens}
    for phase, name in sorted(stated.keys() | of_phase.keys()):
        if of_phase[phase, name] != stated.get((phase, name), 0):
            problem = (
                f"{name} has {of_phase[phase, name]} tokens in pools of phase {phase}, {stated.get((phase, name), 0)} stated"
            )
            report.add(manifest.path, problem, _EMIT)
    for source in manifest.sources:
        if totals[source.name] != source.num_tokens:
            problem = f"{source.name} has {totals[source.name]} tokens in parts, {source.num_tokens} stated"
            report.add(manifest.path, problem, _EMIT)
    if totals.total() != manifest.num_tokens:
        report.add(manifest.path, f"parts sum to {totals.total()} tokens, stated are {manifest.num_tokens}", _EMIT)
