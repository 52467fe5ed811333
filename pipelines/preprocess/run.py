"""Source files to shards, on Dask: compare a plan with what is there, do what is missing, write the catalog last.

Partitions are done in waves, so that no document is in both splits of anything (see `held_out.py`). Training documents that an
earlier wave held out are dropped and counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np

from fastmix_data.arrays import UInt64s
from fastmix_data.atomic_files import exclusive_lock, hash_of, write_json
from fastmix_data.errors import FastmixError, Interrupted
from fastmix_data.machine import Workers, num_cores
from fastmix_data.progress import progress
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.tokens.encoder import Backend, Encoder
from fastmix_data.tokens.tokenizer import TokenizerInfo
from fastmix_data.workdir import Workdir
from pipelines.cluster import dask_client, run_on_cluster
from pipelines.inputs.partitions import NUM_WAVES, Partition
from pipelines.inputs.token_files import TokenInputs
from pipelines.preprocess.assemble import (
    assemble_catalog,
    bad_record_warnings,
    count_warnings,
    describe_catalog,
    padding_warning,
    require_held_out,
    require_readable,
    require_usable,
)
from pipelines.preprocess.chat_templates import names_for_templates, own_chat_template, rendering_of
from pipelines.preprocess.encode_batch import EncodingPlan
from pipelines.preprocess.first_documents import check_first_documents
from pipelines.preprocess.held_out import hash_of_held_out
from pipelines.preprocess.import_checks import check_imports
from pipelines.preprocess.import_tokens import ImportJob, import_tokens
from pipelines.preprocess.partition_job import PartitionJob, run_partition
from pipelines.preprocess.plan import PreprocessPlan, imports_of
from pipelines.preprocess.prepare_tokenizer import prepare_tokenizer
from pipelines.preprocess.receipts import (
    Receipt,
    changed_files,
    load_receipts,
    remove_leftovers,
    require_same_files,
    require_same_recipe,
)
from pipelines.preprocess.sampling.completion import compare_with_estimates, keep_record, sample_lines, settle_sample
from pipelines.preprocess.sampling.shares import choose_samples, is_thinned
from pipelines.preprocess.sampling.thinning import Thinning
from pipelines.reading.documents import column_names
from pipelines.rendering.rendering import Rendering

# Part of every fingerprint: raised when the same input would become other bytes.
_FORMAT_VERSION = 2
# Below this much input, starting worker processes takes longer than the work.
_BYTES_WORTH_PROCESSES = 4 << 20


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


@dataclass
class _Run:
    """A plan under way: what of it is done.

    Attributes:
        receipts: of the partitions that are done, by label.
        renderings: how the documents of each source become texts.
        backends: the library that encodes each source, as far as it has been needed.
        thinnings: which documents are tokenized, of each source that is not to be whole.
    """

    plan: PreprocessPlan
    tokenizer: TokenizerInfo
    receipts: dict[str, Receipt]
    renderings: Mapping[str, Rendering]
    warnings: list[str]
    backends: dict[str, Backend] = field(default_factory=dict)
    thinnings: Mapping[str, Thinning] = field(default_factory=dict)

    def of_wave(self, wave: int) -> list[Partition]:
        """Partitions of a wave, in the order of the recipe."""
        return [partition for partition in self.plan.all_partitions() if partition.wave == wave]

    def fingerprint(self, partition: Partition) -> str:
        """Hash of everything but the content of the input that decides what a partition becomes."""
        section, dataset = self.plan.inputs[partition.source].section, partition.dataset
        if partition.tokens is not None:
            return self._fingerprint_of_import(partition, partition.tokens)
        return hash_of(
            [
                _FORMAT_VERSION,
                [
                    self.tokenizer.sha256,
                    self.tokenizer.eos_id,
                    self.tokenizer.bos_ids,
                    self.plan.shards.model_dump(exclude={"example_tokens", "sample", "sample_seed"}),
                ],
                [self.plan.example_tokens, section.on_long_example] if section.has_mask else None,
                asdict(self.renderings[partition.source]),
                [column_names(section), section.text_keys, section.separator, section.on_bad_text],
                [partition.label, [file.name for file in partition.files], partition.start, partition.stop],
                None if dataset is None else [dataset.name, dataset.config, dataset.split, dataset.num_shards],
                # What a sample leaves whole is the same in the whole.
                *([asdict(thinning)] if (thinning := self.thinning(partition)) is not None else []),
            ]
        )

    def _fingerprint_of_import(self, partition: Partition, tokens: TokenInputs) -> str:
        shards = self.plan.shards
        return hash_of(
            [
                _FORMAT_VERSION,
                [self.tokenizer.sha256, self.tokenizer.vocab_size, self.tokenizer.eos_id],
                [shards.block_tokens, shards.max_shard_bytes, shards.valid_fraction if partition.origin == "both" else None],
                [partition.label, [tokens.path_in_catalog(path) for path, _ in tokens.watched]],
                [(file.storage, file.dtype) for file in tokens.files],
                [(row.path, row.sha256) for row in tokens.rows],
            ]
        )

    def thinning(self, partition: Partition) -> Thinning | None:
        """Which of a partition's documents are tokenized; None for all."""
        return self.thinnings.get(partition.source) if is_thinned(partition) else None

    def do_imports(self, partitions: Sequence[Partition], held_out: UInt64s) -> Iterator[Receipt]:
        """Describe tokens that are there already; here, as it takes no longer than to tell a worker of it."""
        for partition in partitions:
            job = ImportJob(partition, self.plan.shards, self.tokenizer, self.plan.workdir.root, self.fingerprint(partition))
            yield import_tokens(job, held_out_hash=hash_of_held_out(held_out))

    def job(self, partition: Partition) -> PartitionJob:
        """What a worker needs to know to do a partition."""
        return PartitionJob(
            partition,
            self.plan.inputs[partition.source].section,
            self.plan.shards,
            self.encoding(partition.source, self.backends[partition.source]),
            self.plan.workdir.root,
            self.fingerprint(partition),
            self.plan.example_tokens,
            self.thinning(partition),
        )

    def encoding(self, name: str, backend: Backend) -> EncodingPlan:
        """How a source's documents become tokens."""
        limit = self.plan.tokenizer.max_unknown_fraction
        return EncodingPlan(self.plan.inputs[name].where, self.tokenizer, backend, self.renderings[name], limit)

    def held_out_before(self, wave: int) -> UInt64s:
        """Sorted hashes of the documents that earlier waves held out."""
        held_out = [
            self.receipts[partition.label].held_out() for partition in self.plan.all_partitions() if partition.wave < wave
        ]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *held_out]))

    def missing(self, wave: int, held_out: UInt64s) -> list[Partition]:
        """Partitions of a wave that have no receipt for this set of held-out documents."""
        wanted = hash_of_held_out(held_out)
        return [
            partition
            for partition in self.of_wave(wave)
            if partition.label not in self.receipts or self.receipts[partition.label].held_out_hash != wanted
        ]


class _TokenEstimate:
    """Tokens of the whole corpus, judged by what finished partitions made of their bytes: of the same source, else of any."""

    def __init__(self, run: _Run) -> None:
        self._bytes_planned: Counter[str] = Counter()
        self._bytes_done: Counter[str] = Counter()
        self._tokens_done: Counter[str] = Counter()
        self._partitions = {partition.label: partition for partition in run.plan.all_partitions()}
        for partition in self._partitions.values():
            self._bytes_planned[partition.source] += partition.num_bytes
        for receipt in run.receipts.values():
            self.add(receipt)

    def add(self, receipt: Receipt) -> None:
        partition = self._partitions[receipt.label]
        if partition.tokens is not None:
            return  # nothing of it passes by
        self._bytes_done[partition.source] += partition.num_bytes
        self._tokens_done[partition.source] += receipt.num_tokens

    def total(self) -> int:
        of_any = self._tokens_done.total() / max(1, self._bytes_done.total())
        rates = {source: self._tokens_done[source] / size for source, size in self._bytes_done.items() if size}
        return round(sum(size * rates.get(source, of_any) for source, size in self._bytes_planned.items()))


def preprocess(plan: PreprocessPlan, *, workers: Workers, replace: bool = False, is_whole: bool = False) -> PreprocessResult:
    """Tokenize a recipe's sources into shards and a catalog, doing only what is missing.

    Args:
        plan: of `plan_preprocess`.
        workers: the output does not depend on them.
        replace: make shards anew whose recipe or files changed, instead of refusing.
        is_whole: tokenize everything, though the recipe asks for a sample; what of it is there is kept where it is whole.
    Raises:
        MismatchError: the workdir holds shards made from another recipe or other files.
        InputError: an input is malformed or changed since it was planned, or a split that the recipe needs comes out empty.
        Interrupted: the user stopped it; the same command goes on.
    """
    started = time.monotonic()
    workdir = plan.workdir
    with _locked(workdir):
        plan, settled = settle_sample(plan, is_whole=is_whole)
        run = _compare_with_workdir(plan, replace=replace, is_whole=is_whole, quiet=workers.quiet)
        finished = _finished_catalog(run)
        if finished is not None:
            require_usable(plan, finished if workdir.shards.is_dir() else finished.read_from(plan.store))
            message = f"preprocess: nothing to do; {workdir.catalog} is complete and matches the recipe"
            return PreprocessResult(finished, False, message, (*settled, *sample_lines(finished)))
        # A catalog says that everything is there: it goes before the first change and comes back after the last.
        workdir.catalog.unlink(missing_ok=True)
        remove_leftovers(workdir, run.receipts)
        write_json(workdir.preprocess_recipe, plan.sections)
        try:
            _do_missing(run, workers)
        except KeyboardInterrupt as error:
            # From disk: workers that were let finish have left receipts that nobody here has heard of.
            num_done, num_all = len(load_receipts(workdir)), len(list(plan.all_partitions()))
            problem = f"{num_done} of {num_all} partitions are done"
            raise Interrupted("preprocess", problem, "run the same command again to go on") from error
        require_readable(plan, run.receipts)
        catalog = assemble_catalog(plan, run.tokenizer, run.receipts, run.thinnings)
        run.warnings += require_usable(plan, catalog)
        keep_record(plan, catalog)
        catalog.save(workdir.catalog)
    message = f"preprocess: {describe_catalog(catalog)}, {time.monotonic() - started:.1f} s"
    said = [
        *settled,
        *run.warnings,
        *count_warnings(catalog),
        *bad_record_warnings(plan, run.receipts),
        *padding_warning(catalog),
    ]
    of_sample = [*sample_lines(catalog), *compare_with_estimates(plan, catalog)]
    return PreprocessResult(catalog, True, message, (*said, *of_sample))


@contextmanager
def _locked(workdir: Workdir) -> Iterator[None]:
    """Keep other preprocess runs out of a workdir, which is made if it is not there."""
    root, lock = workdir.root, workdir.preprocess_lock
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise FastmixError(root, f"the workdir cannot be written to ({error.strerror})", "name another workdir") from error
    with exclusive_lock(lock, command="preprocess"):
        yield


def _compare_with_workdir(plan: PreprocessPlan, *, replace: bool, is_whole: bool, quiet: bool) -> _Run:
    """Have the tokenizer ready, and keep what the workdir holds of this plan."""
    receipts = load_receipts(plan.workdir)
    changed = changed_files(plan, receipts)
    if not replace:
        require_same_recipe(plan, completes_sample=is_whole)
        require_same_files(plan, receipts, changed)
    tokenizer, warnings = prepare_tokenizer(plan, may_change=replace or not receipts, quiet=quiet)
    own, names = own_chat_template(tokenizer.path), names_for_templates(tokenizer)
    renderings = {
        name: rendering_of(inputs, given=plan.chat_templates.get(name), own=own, special_tokens=names)
        for name, inputs in plan.inputs.items()
    }
    warnings += tuple(warning for _, warning in renderings.values() if warning is not None)
    run = _Run(plan, tokenizer, receipts, {name: rendering for name, (rendering, _) in renderings.items()}, [*warnings])
    run.warnings += [warning for inputs in plan.inputs.values() for warning in inputs.warnings]
    run.warnings += check_imports(imports_of(plan.inputs), tokenizer, example_tokens=plan.example_tokens)
    run.thinnings, said = choose_samples(
        plan.inputs,
        plan.partitions,
        shards=plan.shards,
        targets=plan.targets,
        encoding_of=lambda name: run.encoding(name, "tokenizers"),
    )
    run.warnings += said
    # Another tokenizer, other sections or keys are all in the fingerprint; a shard that somebody deleted is not.
    fingerprints = {partition.label: run.fingerprint(partition) for partition in plan.all_partitions()}
    ways = {partition.label: plan.inputs[partition.source].section.on_bad_record for partition in plan.all_partitions()}
    run.receipts = {
        label: receipt
        for label, receipt in receipts.items()
        if receipt.fingerprint == fingerprints.get(label)
        and label not in changed
        and receipt.suits(ways[label])
        and receipt.outputs_are_there(plan.workdir.root, shards_are_elsewhere=plan.store is not None)
    }
    return run


def _finished_catalog(run: _Run) -> Catalog | None:
    """The catalog on disk, if it is that of this plan and every shard of it is there."""
    path = run.plan.workdir.catalog
    # The waves in turn: what a wave lacks decides whether the next one's held-out documents are known.
    if not path.exists() or any(run.missing(wave, run.held_out_before(wave)) for wave in range(NUM_WAVES)):
        return None
    catalog, wanted = load_catalog(path), assemble_catalog(run.plan, run.tokenizer, run.receipts, run.thinnings)
    return catalog if (catalog.info.recipe_hash, catalog.rows) == (wanted.info.recipe_hash, wanted.rows) else None


def _do_missing(run: _Run, workers: Workers) -> None:
    todo = [partition for partition in run.plan.all_partitions() if partition.label not in run.receipts]
    num_workers = min(workers.num_workers or num_cores(), max(1, len(todo)))
    is_small = sum(partition.num_bytes for partition in todo) < _BYTES_WORTH_PROCESSES
    in_process = is_small and workers.num_workers in (None, 1)
    imports = {partition.label for partition in run.plan.all_partitions() if partition.tokens is not None}
    num_tokens = sum(receipt.num_tokens for label, receipt in run.receipts.items() if label not in imports)
    estimate = _TokenEstimate(run)
    with (
        dask_client(num_workers=num_workers, scheduler=workers.scheduler, in_process=in_process) as client,
        progress("preprocess", total=None, done=num_tokens, quiet=workers.quiet) as advance,
    ):

        def keep(receipt: Receipt) -> None:
            run.receipts[receipt.label] = receipt
            estimate.add(receipt)
            advance(0, total=estimate.total())

        for wave in range(NUM_WAVES):
            held_out = run.held_out_before(wave)
            missing = run.missing(wave, held_out)
            for receipt in run.do_imports([partition for partition in missing if partition.tokens is not None], held_out):
                keep(receipt)
            missing = [partition for partition in missing if partition.tokens is None]
            if missing:
                _choose_backends(run, [name for name in dict.fromkeys(p.source for p in missing) if name not in run.backends])
                run_on_cluster(
                    client,
                    run_partition,
                    [run.job(partition) for partition in missing],
                    advance=advance,
                    on_result=keep,
                    remedy="lower shards.max_shard_bytes",
                    # Once to each worker instead of once with each partition: it may be millions of hashes.
                    held_out=client.scatter(held_out, broadcast=True, hash=False) if len(held_out) else held_out,
                )
            if wave == 1:
                # All that can be held out is: a target without any is told before its training files are read.
                require_readable(run.plan, run.receipts)
                require_held_out(run.plan, run.receipts)
    # Shards of a partition that was done again, for another set of held-out documents, may have become fewer.
    remove_leftovers(run.plan.workdir, run.receipts)


def _choose_backends(run: _Run, names: list[str]) -> None:
    """Check the fast encoder, and what the tokenizer loses, on the first documents of some sources."""
    if not names:
        return
    tokenizer = run.tokenizer
    reference = Encoder(tokenizer.path, backend="tokenizers", control=tokenizer.edges)
    fast: Encoder | None = None
    try:
        fast = Encoder(tokenizer.path, backend="fastokens", control=tokenizer.edges)
    except FastmixError as error:
        run.warnings += [f"{run.plan.inputs[name].where}: encoded with the slower `tokenizers` because {error}" for name in names]
    for name in names:
        first = run.plan.partitions[name][0]
        encoding = run.encoding(name, "tokenizers")
        run.backends[name], warnings = check_first_documents(
            run.plan.inputs[name], first, encoding, reference=reference, fast=fast
        )
        run.warnings += warnings
