"""Source files to shards, on Dask: plan, compare with what is there, do what is missing, write the catalog last.

Partitions are done in waves, so that no document is in both splits of anything: held-out files first, then sources that are split
by hash, then the training files of sources with held-out files of their own. Training documents that an earlier wave held out are
dropped and counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import distributed
import numpy as np

from fastmix_data.artefacts import hash_of, write_json
from fastmix_data.errors import FastmixError, InputError, Interrupted
from fastmix_data.progress import Advance, progress
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow, load_catalog
from fastmix_data.shards.sequences import SequenceReader
from fastmix_data.tokens.encoding import Backend, Encoder
from fastmix_data.tokens.tokenizer import TokenizerInfo
from fastmix_data.units import format_count
from pipelines.cluster import dask_client, num_cores
from pipelines.preprocess.inputs import SourceInputs, resolve_inputs
from pipelines.preprocess.leftovers import (
    SECTIONS_FILE,
    hold_workdir,
    preprocess_sections,
    remove_leftovers,
    require_same_files,
    require_same_sections,
)
from pipelines.preprocess.partition_job import PartitionJob, run_partition
from pipelines.preprocess.partitions import Partition, plan_partitions
from pipelines.preprocess.read_counts import ReadCounts
from pipelines.preprocess.readers import read_partition
from pipelines.preprocess.receipts import Hashes, Receipt, changed_file, hash_of_held_out, hash_of_inputs, load_receipts
from pipelines.preprocess.tokenizer import check_tokenizer, choose_backend, prepare_tokenizer

_FORMAT_VERSION = 1
_WAVE_OF_ORIGIN = {"valid": 0, "both": 1, "train": 2}
# Below this much input, starting worker processes takes longer than the work.
_BYTES_WORTH_PROCESSES = 4 << 20
_FILES_OPENED_BEFOREHAND = 64
_FIRST_READ_BYTES = 1 << 16
_PROGRESS_TOPIC = "fastmix-tokens"
_SECONDS_BETWEEN_EVENTS = 0.5


@dataclass(frozen=True)
class PreprocessResult:
    """What `preprocess` came to.

    Attributes:
        did_work: False if everything was there already.
        message: one line for the user.
        warnings: what was replaced, left out or slower than expected, each said once.
    """

    catalog: Catalog
    did_work: bool
    message: str
    warnings: tuple[str, ...]


def check_inputs(recipe: Recipe) -> dict[str, SourceInputs]:
    """Refuse what can be known before any work: files, their formats, their keys as far as the first document, the tokenizer.

    Returns:
        The files of each source and target of the recipe, by name.
    Raises:
        FastmixError: one line that names the key of the recipe or the file.
    """
    inputs, plan = _plan(recipe)
    for name, source in inputs.items():
        _open_first_documents(source, plan[name])
    return inputs


def _plan(recipe: Recipe) -> tuple[dict[str, SourceInputs], dict[str, list[Partition]]]:
    check_tokenizer(recipe)
    inputs = resolve_inputs(recipe)
    for name in recipe.target.sources:
        if not inputs[name].valid_files and recipe.shards.valid_fraction == 0:
            raise InputError(
                f"target.sources: {name} has no held-out documents; give sources.{name}.valid_files, or raise shards.valid_fraction"
            )
    size = recipe.shards.max_partition_bytes
    return inputs, {name: plan_partitions(source, max_partition_bytes=size) for name, source in inputs.items()}


def _open_first_documents(source: SourceInputs, plan: Sequence[Partition]) -> None:
    """Read the beginning of a source's JSON files; other formats are checked by planning or have nothing to check."""
    json_files = [partition for partition in plan if partition.files and partition.files[0].format.startswith("jsonl")]
    for partition in [partition for partition in json_files if partition.start == 0][:_FILES_OPENED_BEFOREHAND]:
        counts = ReadCounts()
        first = next(read_partition(partition, source.section, counts, batch_bytes=_FIRST_READ_BYTES), None)
        if first is None and not counts.num_empty and partition.is_whole_file:
            raise InputError(f"{source.where}: {partition.files[0].name} holds no document; remove it or fill it")


@dataclass
class _Run:
    """One preprocess run: what it is to make, and what is done of it."""

    recipe: Recipe
    root: Path
    inputs: dict[str, SourceInputs]
    plan: dict[str, list[Partition]]
    tokenizer: TokenizerInfo
    receipts: dict[str, Receipt]
    warnings: list[str] = field(default_factory=list)

    def partitions(self, wave: int | None = None) -> list[Partition]:
        """Partitions of one wave or of all, in the order of the recipe."""
        return [p for name in self.inputs for p in self.plan[name] if wave is None or _WAVE_OF_ORIGIN[p.origin] == wave]

    def fingerprint(self, partition: Partition) -> str:
        """Hash of everything but the content of the input that decides what a partition becomes."""
        section, dataset = self.inputs[partition.source].section, partition.dataset
        return hash_of(
            [
                _FORMAT_VERSION,
                [self.tokenizer.sha256, self.tokenizer.eos_id, self.recipe.shards.model_dump()],
                [section.text_keys, section.separator, section.on_bad_text],
                [partition.label, [file.name for file in partition.files], partition.start, partition.stop],
                None if dataset is None else [dataset.name, dataset.config, dataset.split, dataset.num_shards],
            ]
        )

    def job(self, partition: Partition, backend: Backend) -> PartitionJob:
        """What a worker needs to know to do a partition."""
        section = self.inputs[partition.source].section
        return PartitionJob(
            partition, section, self.recipe.shards, self.tokenizer, backend, self.root, self.fingerprint(partition)
        )

    def held_out_before(self, wave: int) -> Hashes:
        """Sorted hashes of the documents that earlier waves held out."""
        held = [self.receipts[partition.label].held_out() for earlier in range(wave) for partition in self.partitions(earlier)]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *held]))

    def keep_matching_receipts(self) -> None:
        """Forget the receipts of partitions that have to be done again."""
        planned = {partition.label: partition for partition in self.partitions()}
        self.receipts = {
            label: receipt
            for label, receipt in self.receipts.items()
            if label in planned
            and receipt.fingerprint == self.fingerprint(planned[label])
            and changed_file(planned[label], receipt) is None
            and receipt.outputs_are_there(self.root)
        }

    def missing(self, wave: int, held_out: Hashes) -> list[Partition]:
        """Partitions of a wave that have no receipt for this set of held-out documents."""
        wanted = hash_of_held_out(held_out)
        return [
            partition
            for partition in self.partitions(wave)
            if partition.label not in self.receipts or self.receipts[partition.label].held_out_hash != wanted
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of finished partitions."""
        return sum(row.num_tokens for receipt in self.receipts.values() for row in receipt.shards)

    def estimated_tokens(self) -> int:
        """Tokens of the whole corpus, judged by what finished partitions made of their bytes: of the same source, else of any."""
        finished = [(p.source, p.num_bytes, self.receipts[p.label]) for p in self.partitions() if p.label in self.receipts]
        num_bytes: Counter[str] = Counter()
        num_tokens: Counter[str] = Counter()
        for source, size, receipt in finished:
            num_bytes[source] += size
            num_tokens[source] += sum(row.num_tokens for row in receipt.shards)
        of_any = num_tokens.total() / max(1, num_bytes.total())
        rates = {source: num_tokens[source] / size for source, size in num_bytes.items() if size}
        return round(sum(p.num_bytes * rates.get(p.source, of_any) for p in self.partitions()))

    @property
    def is_done(self) -> bool:
        """Whether every partition has a receipt."""
        if any(partition.label not in self.receipts for partition in self.partitions()):
            return False
        return not any(self.missing(wave, self.held_out_before(wave)) for wave in range(3))


def preprocess(
    recipe: Recipe, *, num_workers: int | None = None, scheduler: str | None = None, replace: bool = False, quiet: bool = False
) -> PreprocessResult:
    """Tokenize a recipe's sources into shards and a catalog, doing only what is missing.

    Args:
        num_workers: worker processes; one per core when not given. The output does not depend on it.
        scheduler: address of a running Dask cluster that sees the same file system, instead of workers of our own.
        replace: make shards anew whose recipe or files changed, instead of refusing.
        quiet: no progress on stderr.
    Raises:
        MismatchError: the workdir holds shards made from another recipe or other files.
        InputError: an input is missing or malformed, or a split that the recipe needs comes out empty.
        Interrupted: the user stopped it; the same command goes on.
    """
    started = time.monotonic()
    inputs = check_inputs(recipe)
    root = recipe.paths.root
    with hold_workdir(root):
        run = _prepare(recipe, inputs, root, replace=replace, quiet=quiet)
        before = _complete_catalog(run, recipe)
        if before is not None:
            _require_usable(before, recipe)
            message = f"preprocess: nothing to do; {root / 'catalog.parquet'} is complete and matches the recipe"
            return PreprocessResult(before, False, message, ())
        (root / "catalog.parquet").unlink(missing_ok=True)
        remove_leftovers(root, run.receipts)
        write_json(root / SECTIONS_FILE, preprocess_sections(recipe))
        try:
            _do_missing(run, num_workers=num_workers, scheduler=scheduler, quiet=quiet)
        except KeyboardInterrupt as error:
            done = len(load_receipts(root))
            raise Interrupted(
                f"preprocess: {done} of {len(run.partitions())} partitions are done; run the same command again to go on"
            ) from error
        catalog = _assemble(run)
        _require_usable(catalog, recipe)
        catalog.save(root / "catalog.parquet")
    return PreprocessResult(
        catalog, True, _describe(catalog, time.monotonic() - started), (*run.warnings, *_count_warnings(catalog))
    )


def _prepare(recipe: Recipe, inputs: dict[str, SourceInputs], root: Path, *, replace: bool, quiet: bool) -> _Run:
    """Plan, compare with what the workdir holds, and have the tokenizer ready."""
    plan = {
        name: plan_partitions(source, max_partition_bytes=recipe.shards.max_partition_bytes) for name, source in inputs.items()
    }
    receipts = load_receipts(root)
    if not replace:
        require_same_sections(root, preprocess_sections(recipe))
        everything = [partition for partitions in plan.values() for partition in partitions]
        require_same_files(root, everything, receipts, is_complete=(root / "catalog.parquet").exists())
    tokenizer, warnings = prepare_tokenizer(recipe, inputs, plan, root=root, may_change=replace or not receipts, quiet=quiet)
    run = _Run(recipe, root, inputs, plan, tokenizer, receipts, [*warnings])
    run.warnings += [warning for source in inputs.values() for warning in source.warnings]
    run.keep_matching_receipts()
    return run


def _complete_catalog(run: _Run, recipe: Recipe) -> Catalog | None:
    """The catalog on disk, if it is that of this recipe and every shard of it is there."""
    path = run.root / "catalog.parquet"
    if not path.exists() or not run.is_done:
        return None
    catalog = load_catalog(path)
    is_same = catalog.info.recipe_hash == hash_of(preprocess_sections(recipe)) and list(catalog.rows) == _rows(run)
    return catalog if is_same else None


def _do_missing(run: _Run, *, num_workers: int | None, scheduler: str | None, quiet: bool) -> None:
    todo = [partition for partition in run.partitions() if partition.label not in run.receipts]
    workers = min(num_workers or num_cores(), max(1, len(todo)))
    is_small = sum(partition.num_bytes for partition in todo) < _BYTES_WORTH_PROCESSES
    with (
        dask_client(num_workers=workers, scheduler=scheduler, in_process=is_small and num_workers in (None, 1)) as client,
        progress("preprocess", total=None, done=run.num_tokens, quiet=quiet) as advance,
    ):
        backends: dict[str, Backend] = {}
        for wave in range(3):
            held_out = run.held_out_before(wave)
            missing = run.missing(wave, held_out)
            _choose_backends(run, missing, backends)
            if missing:
                jobs = [run.job(partition, backends[partition.source]) for partition in missing]
                _run_wave(client, jobs, held_out, run, advance)
            if wave == 1:
                _require_held_out(run)
    remove_leftovers(run.root, run.receipts)


def _choose_backends(run: _Run, partitions: Iterable[Partition], backends: dict[str, Backend]) -> None:
    """Check the fast encoder on the first documents of each source that has work to do."""
    names = [name for name in dict.fromkeys(partition.source for partition in partitions) if name not in backends]
    if not names:
        return
    reference = Encoder(run.tokenizer.path, backend="tokenizers")
    for name in names:
        backends[name], warning = choose_backend(run.inputs[name], run.plan[name][0], run.tokenizer, reference=reference)
        run.warnings += [warning] if warning else []


def _run_wave(client: distributed.Client, jobs: list[PartitionJob], held_out: Hashes, run: _Run, advance: Advance) -> None:
    """Do some partitions on the cluster; the first error stops the rest."""
    told = 0

    def news(event: tuple[float, int]) -> None:
        nonlocal told
        told += event[1]
        advance(event[1])

    before = run.num_tokens
    client.subscribe_topic(_PROGRESS_TOPIC, news)
    shared = client.scatter(held_out, broadcast=True, hash=False) if len(held_out) else held_out
    futures = client.map(_work, jobs, held_out=shared, pure=False, batch_size=256)
    try:
        for future in distributed.as_completed(futures):
            receipt = future.result()
            run.receipts[receipt.label] = receipt
            advance(0, total=run.estimated_tokens())
    except distributed.KilledWorker as error:
        raise FastmixError(
            f"a preprocess worker was killed again and again, most likely for lack of memory ({error}); use fewer --workers, or lower "
            "shards.max_shard_bytes"
        ) from error
    finally:
        client.cancel([future for future in futures if not future.done()])
        client.unsubscribe_topic(_PROGRESS_TOPIC)
        advance(max(0, run.num_tokens - before - told))  # held-out tokens, and news still on its way


def _work(job: PartitionJob, held_out: Hashes) -> Receipt:
    """Run on a worker: one partition, with news of its progress now and then."""
    worker = distributed.get_worker()
    untold, last = 0, time.monotonic()

    def advance(num_tokens: int) -> None:
        nonlocal untold, last
        untold += num_tokens
        if time.monotonic() - last >= _SECONDS_BETWEEN_EVENTS:
            worker.log_event(_PROGRESS_TOPIC, untold)
            untold, last = 0, time.monotonic()

    receipt = run_partition(job, held_out, advance)
    worker.log_event(_PROGRESS_TOPIC, untold)
    return receipt


def _require_held_out(run: _Run) -> None:
    """Refuse a target without a held-out document before its training files are read."""
    for name in (*run.recipe.target.sources, *run.recipe.target.files):
        if not any(len(run.receipts[p.label].held_out()) for p in run.plan[name] if p.origin != "train"):
            source = run.inputs[name]
            remedy = (
                f"put documents into {source.where}.{'valid_files' if source.is_source else 'files'}"
                if source.valid_files
                else f"raise shards.valid_fraction from {run.recipe.shards.valid_fraction}, or give {source.where}.valid_files"
            )
            raise InputError(f"target {name}: none of its documents is held out; {remedy}")


def _rows(run: _Run) -> list[ShardRow]:
    """Rows of the catalog: by source, then split, partition and shard."""
    rows: list[ShardRow] = []
    for name in run.inputs:
        of_source = [row for partition in run.plan[name] for row in run.receipts[partition.label].shards]
        rows += sorted(of_source, key=lambda row: (row.split, row.path))
    return rows


def _assemble(run: _Run) -> Catalog:
    statistics: dict[str, dict[str, int]] = {}
    for name in run.inputs:
        counts: Counter[str] = Counter()
        for partition in run.plan[name]:
            counts.update(run.receipts[partition.label].counts)
        statistics[name] = dict(counts)
    info = CatalogInfo(
        block_tokens=run.recipe.shards.block_tokens,
        vocab_size=run.tokenizer.vocab_size,
        eos_id=run.tokenizer.eos_id,
        tokenizer_sha256=run.tokenizer.sha256,
        recipe_hash=hash_of(preprocess_sections(run.recipe)),
        inputs_hash=hash_of_inputs(run.receipts.values()),
        sources=tuple(run.recipe.sources),
        target_files=tuple(run.recipe.target.files),
        statistics=statistics,
    )
    return Catalog(run.root, info, _rows(run))


def _require_usable(catalog: Catalog, recipe: Recipe) -> None:
    """Refuse sources and targets that are too small for the search, now and not an hour later.

    Raises:
        InputError: a source is smaller than one sequence, or a target than one sequence for each of its two halves.
    """
    length = recipe.search.sequence_length
    for name in catalog.sources:
        num_tokens = catalog.num_tokens(name)
        if num_tokens <= length:
            raise InputError(
                f"source {name}: its training split has {num_tokens} tokens, less than one sequence of {length} and its last label; give "
                "it more text, remove it, or lower search.sequence_length"
            )
    targets = (*recipe.target.sources, *recipe.target.files)
    for half in ("search", "unseen"):
        SequenceReader(catalog, sources=targets, split="valid", sequence_length=length, half=half)


def _describe(catalog: Catalog, seconds: float) -> str:
    train = sum(row.num_tokens for row in catalog.rows if row.split == "train")
    valid = sum(row.num_tokens for row in catalog.rows if row.split == "valid")
    return (
        f"preprocess: {len(catalog.sources)} sources, {format_count(train)} training and {format_count(valid)} held-out tokens in "
        f"{len(catalog.rows)} shards, {seconds:.1f} s"
    )


def _count_warnings(catalog: Catalog) -> list[str]:
    """One line for each kind of thing that was replaced or left out."""
    said = {
        "num_bad_text": "documents had broken UTF-8, which was replaced by U+FFFD",
        "num_empty": "documents without text were left out",
        "num_leaked_documents": "training documents were left out because they are held out too",
    }
    warnings = []
    for key, text in said.items():
        found = {name: counts[key] for name, counts in catalog.info.statistics.items() if counts.get(key)}
        if found:
            listed = ", ".join(f"{name} {count}" for name, count in found.items())
            warnings.append(f"{sum(found.values())} {text} ({listed})")
    return warnings
