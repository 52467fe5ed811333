"""`fastmix export`: a manifest in the format of another trainer, by tasks on Dask whose receipts let a stopped export go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Event, Lock
from typing import Any, Literal

from fastmix_data.atomic_files import exclusive_lock, partial_files, read_json, write_json
from fastmix_data.errors import CorruptArtefactError, MismatchError
from fastmix_data.exports.format import NO, ExportFormat, ExportRequest, ExportTask, Files, OnTokens, Receipt
from fastmix_data.exports.formats import export_format
from fastmix_data.exports.part_tokens import check_unchanged
from fastmix_data.exports.pools import drawn_rows
from fastmix_data.machine import Workers, num_cores
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.progress import Advance, progress
from fastmix_data.recipe.exports import DEFAULT_FILE_BYTES
from fastmix_data.workdir import ExportFolder
from pipelines.cluster import dask_client, run_on_cluster

_WORTH_WORKERS = 50_000_000  # tokens or bytes; below that, starting workers takes longer than the work
OnResult = Callable[[Any], None]
_Do = Callable[[Callable[..., Any], Sequence[Any], Advance, OnResult], None]  # what is done with which jobs


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote or found.

    Attributes:
        files: that a trainer is given, the first one first; absolute.
        remarks: what the format cannot say of this manifest.
    """

    directory: Path
    format_name: str
    files: tuple[Path, ...]
    remarks: tuple[str, ...]
    num_bytes: int
    did_work: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "did_work": self.did_work,
            "format": self.format_name,
            "directory": str(self.directory),
            "files": [str(path) for path in self.files],
            "num_bytes": self.num_bytes,
            "remarks": list(self.remarks),
        }

    @property
    def message(self) -> str:
        """One line for the user."""
        if self.did_work:
            return f"wrote {self.directory} for {self.format_name}; give the trainer {self.files[0]}"
        return f"{self.directory} is complete and matches the manifest; nothing to do"


def export(
    manifest_path: Path,
    *,
    to: str,
    directory: Path,
    files: Files = "reference",
    max_file_bytes: int = DEFAULT_FILE_BYTES,
    sequence_length: int | None = None,
    check_shards: bool = True,
    root: Path | None = None,
    workers: Workers | None = None,
    replace: bool = False,
) -> ExportResult:
    """Write a manifest in the format of another trainer, or go on with an export that was stopped.

    Args:
        to: one of `formats.NAMES`.
        files, max_file_bytes, sequence_length: see `ExportRequest`.
        check_shards: hash every shard that is read first; an export that copies nothing reads them for that alone.
        root: where the shards are, if not where the manifest says.
        replace: write anew over an export of another manifest or with other settings.

    Raises:
        InputError, CorruptArtefactError: as `load_manifest`; or a shard is missing, or changed since the manifest was made.
        MismatchError: the folder holds something else; or the manifest begins within an epoch, which few formats can say.
        FastmixError: the format cannot hold this manifest.
    """
    manifest, workers = load_manifest(manifest_path), workers or Workers()
    root = (manifest.root_path if root is None else root).resolve()
    request = ExportRequest(manifest, root, directory.resolve(), files, max_file_bytes, sequence_length)
    if request.directory in (root, *manifest.directory.resolve().parents, manifest.directory.resolve()):
        # A materialized folder is an export too, and --replace would delete what is to be read.
        raise MismatchError(directory, f"is where {manifest.path} or its shards lie", "name another folder with --out")
    work = _Export(export_format(to), request, check_shards=check_shards)
    if manifest.starts_within_an_epoch and work.format.keeps.begun_epochs == NO:
        problem = "continues another manifest in the middle of an epoch, and which sequences are left of that only fastmix's loader knows"
        raise MismatchError(manifest.path, problem, "`fastmix materialize` it first, and export what that writes")
    work.check_folder(replace=replace)
    remarks = (*_lost_phases(work.format, manifest), *work.format.check(request))
    with exclusive_lock(work.folder.lock, command="export"):
        if (done := work.finished()) is not None:
            return done
        receipts = work.run_tasks(workers)
        return work.finish(receipts, remarks)


def check_directory(directory: Path) -> None:
    """Refuse a folder that holds what no export wrote; needs no manifest.

    Raises:
        MismatchError: says what it is.
    """
    if directory.exists() and not directory.is_dir():
        raise MismatchError(directory, "is a file", "name a folder with --out, or dir in the recipe")
    if directory.exists() and any(directory.iterdir()) and not ExportFolder(directory).begun.exists():
        remedy = "name an empty or new folder with --out, or dir in the recipe"
        raise MismatchError(directory, "holds files that are no export of fastmix", remedy)


def _lost_phases(format: ExportFormat, manifest: Manifest) -> tuple[str, ...]:
    if len(manifest.phases) == 1 or format.keeps.phases != NO:
        return ()
    return (
        f"{format.name} does not tell phases apart: it reads the mixture of all {len(manifest.phases)} together, from begin to end",
    )


class _Export:
    """One format into one folder."""

    def __init__(self, format: ExportFormat, request: ExportRequest, *, check_shards: bool) -> None:
        self.format, self.request, self._check_shards = format, request, check_shards
        self.folder = ExportFolder(request.directory)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What an export is made from; one of another identity is not gone on with."""
        request = self.request
        return {
            "format": self.format.name,
            "manifest_sha256": request.manifest.sha256,
            "files": request.files,
            "max_file_bytes": request.max_file_bytes,
            "sequence_length": request.sequence_length,
            "root": str(request.root),
        }

    def check_folder(self, *, replace: bool) -> None:
        """Refuse a folder that holds anything but this export, finished or begun; with `replace`, empty it of another one's files."""
        directory, begun = self.request.directory, self.folder.begun
        check_directory(directory)
        if not begun.exists():
            return
        found = read_json(begun)
        changed = [name for name, value in self.identity.items() if found.get(name) != value]
        if replace:
            self._discard()
        elif changed:
            pairs = "; ".join(f"{name} {found.get(name)}, now {self.identity[name]}" for name in changed)
            raise MismatchError(directory, f"holds an export with another {pairs}", "name another folder, or give --replace")

    def _discard(self) -> None:
        """Delete what an export wrote, and nothing else."""
        record = read_json(self.folder.record) if self.folder.record.exists() else {}
        receipts = [read_json(path) for path in sorted(self.folder.receipts.glob("*.json"))]
        names = [*record.get("files", ()), *(name for receipt in receipts for name in receipt["files"])]
        for name in names:
            (self.request.directory / name).unlink(missing_ok=True)
        for path in [*self.folder.receipts.glob("*.json"), self.folder.record, self.folder.begun]:
            path.unlink(missing_ok=True)

    def finished(self) -> ExportResult | None:
        """The export on disk, if it is complete.

        Raises:
            CorruptArtefactError: a file of it is missing or has another size.
        """
        if not self.folder.record.exists():
            return None
        record, directory = read_json(self.folder.record), self.request.directory
        for name, num_bytes in record["files"].items():
            path = directory / name
            if not path.is_file() or path.stat().st_size != num_bytes:
                raise CorruptArtefactError(path, "is missing or cut short", "export again with --replace")
        return self._result(record, did_work=False)

    def run_tasks(self, workers: Workers) -> dict[str, Receipt]:
        """Do every task that has no receipt."""
        tasks = self.format.tasks(self.request)
        write_json(self.folder.begun, self.identity)
        receipts = {task.name: found for task in tasks if (found := self._receipt(task)) is not None}
        missing = [task for task in tasks if task.name not in receipts]
        total, passed = sum(task.num_tokens for task in tasks), sum(task.num_tokens for task in tasks if task.name in receipts)
        manifest = self.request.manifest
        checked = manifest.parts.part(drawn_rows(manifest)) if missing and self._check_shards else ()
        shards = list({part.path: part for part in checked}.values())
        num_bytes = sum(part.bytes for part in shards)

        def keep(receipt: Receipt) -> None:
            receipts[receipt["task"]] = receipt
            write_json(self.folder.receipt_of(receipt["task"]), receipt)

        # One set of workers for both: to start them takes as long as to read a gigabyte.
        num_jobs = max(len(shards), len(missing))
        ways = _Ways(self.request, workers, amount=num_bytes + total - passed, num_jobs=num_jobs, runs_in=self.format.runs_in)
        with ways.doing() as do:
            if shards:
                with progress("check shards", total=num_bytes, unit="B", quiet=workers.quiet) as advance:
                    do(_check_shard, shards, advance, lambda _: None)
            with progress("export", total=total, done=passed, quiet=workers.quiet) as advance:
                do(_do_task, missing, advance, keep)
        return receipts

    def _receipt(self, task: ExportTask) -> Receipt | None:
        """A task's receipt, if what it wrote is still there."""
        path = self.folder.receipt_of(task.name)
        if not path.exists():
            return None
        receipt: Receipt = read_json(path)
        return receipt if all((self.request.directory / name).is_file() for name in receipt["files"]) else None

    def finish(self, receipts: Mapping[str, Receipt], remarks: Sequence[str]) -> ExportResult:
        """Write what names the other files, and last the record of them all."""
        directory = self.request.directory
        first = self.format.finish(self.request, receipts)
        names = [*(name for receipt in receipts.values() for name in receipt["files"]), *first]
        sizes = {name: (directory / name).stat().st_size for name in dict.fromkeys(names)}
        # What a killed task left, each beside the file that it was to become; a user's own `*.partial` is none of these.
        for path in (left for name in sizes for left in partial_files(directory / name)):
            path.unlink()
        record = {**self.identity, "give": list(first), "remarks": list(remarks), "files": sizes}
        write_json(self.folder.record, record)
        return self._result(record, did_work=True)

    def _result(self, record: Mapping[str, Any], *, did_work: bool) -> ExportResult:
        directory = self.request.directory
        given = tuple(directory / name for name in record["give"])
        return ExportResult(
            directory, self.format.name, given, tuple(record["remarks"]), sum(record["files"].values()), did_work=did_work
        )


def _do_task(task: ExportTask, on_tokens: OnTokens, *, request: ExportRequest) -> Receipt:
    return {**task.run(request, on_tokens), "task": task.name}


def _check_shard(part: Part, on_bytes: OnTokens, *, request: ExportRequest) -> None:
    check_unchanged(part, root=request.root)
    on_bytes(part.bytes)


@dataclass(frozen=True)
class _Ways:
    """The ways to do jobs: here one after the other, in threads, or on Dask's workers.

    Attributes:
        amount: tokens and bytes to pass.
        runs_in: what the format's tasks run in on this machine, where there is enough to do.
    """

    request: ExportRequest
    workers: Workers
    amount: int
    num_jobs: int
    runs_in: Literal["threads", "processes"]

    @contextmanager
    def doing(self) -> Iterator[_Do]:
        """Ready to do jobs."""
        num_workers = min(self.workers.num_workers or num_cores(), self.num_jobs)
        if self.workers.scheduler is None and (self.amount < _WORTH_WORKERS or num_workers < 2):
            yield self._here
        elif self.workers.scheduler is None and self.runs_in == "threads":
            yield partial(self._in_threads, num_workers)
        else:
            with dask_client(num_workers=num_workers, scheduler=self.workers.scheduler) as client:
                # Once to each worker, not with each job: a manifest may have a million parts.
                yield partial(self._on_dask, client, client.scatter(self.request, broadcast=True))

    def _here(self, work: Callable[..., Any], jobs: Sequence[Any], advance: Advance, on_result: OnResult) -> None:
        for job in jobs:
            on_result(work(job, advance, request=self.request))

    def _in_threads(
        self, num_threads: int, work: Callable[..., Any], jobs: Sequence[Any], advance: Advance, on_result: OnResult
    ) -> None:
        lock, stopped = Lock(), Event()

        def tell(amount: int) -> None:
            if stopped.is_set():
                raise _Stopped
            with lock:
                advance(amount)

        with ThreadPoolExecutor(num_threads) as pool:
            futures = [pool.submit(work, job, tell, request=self.request) for job in jobs]
            try:
                for future in as_completed(futures):
                    on_result(future.result())
            except BaseException:
                # Tasks that have begun end at their next news instead of at the end of their file.
                stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _on_dask(
        self,
        client: Any,
        shared: Any,
        work: Callable[..., Any],
        jobs: Sequence[Any],
        advance: Advance,
        on_result: OnResult,
    ) -> None:
        remedy = "a smaller --max-file-bytes"
        run_on_cluster(client, work, jobs, advance=advance, remedy=remedy, on_result=on_result, request=shared)


class _Stopped(Exception):
    """Another task failed, or the user asked to stop."""
