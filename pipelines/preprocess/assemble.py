"""From receipts to the catalog: its rows and counts, whether it is of use for what the recipe wants, and how it is described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fastmix_data.atomic_files import hash_of
from fastmix_data.errors import InputError
from fastmix_data.messages import and_more
from fastmix_data.results.mixture import few_documents
from fastmix_data.shards.catalog import Catalog, CatalogInfo, ShardRow
from fastmix_data.shards.held_out_halves import check_halves, documents_seen
from fastmix_data.tokens.tokenizer import TokenizerInfo
from fastmix_data.units import format_count
from pipelines.preprocess.plan import PreprocessPlan
from pipelines.preprocess.receipts import Receipt, hash_of_inputs
from pipelines.preprocess.sampling.completion import sample_of
from pipelines.preprocess.sampling.thinning import Thinning

# Padding is read from disk and counts as blocks, and in an exported shard it is trained on; up to here it is not worth a warning.
_MUCH_PADDING = 0.1
_COUNTED = {
    "num_bad_text": "documents had broken UTF-8, which was replaced by U+FFFD",
    "num_empty": "documents without text, or conversations without an answer, were left out",
    "num_leaked_documents": "training documents were left out because they are held out too",
    "num_spelled_as_text": "control tokens that documents spell were kept as ordinary text",
    "num_spelled_tokens": "control tokens that documents spell became the tokens",
    "num_unknown_tokens": "tokens stand for text that the tokenizer does not know",
    "num_lost_characters": "characters of the samples looked at were lost by the tokenizer",
}
_OF_EXAMPLES = {
    "num_truncated": "examples of more than {window} tokens were cut to their first {window}",
    "num_skipped": "examples of more than {window} tokens were left out",
    "num_split": "examples of more than {window} tokens were split into several",
    "num_without_loss": "examples or pieces of one had no token with loss within {window} tokens and were left out",
}
_LONGER = "raise training.sequence_length, or shards.example_tokens where it is given"


def assemble_catalog(
    plan: PreprocessPlan, tokenizer: TokenizerInfo, receipts: Mapping[str, Receipt], thinnings: Mapping[str, Thinning]
) -> Catalog:
    """The catalog of a run whose partitions all have a receipt."""
    rows: list[ShardRow] = []
    statistics: dict[str, dict[str, int]] = {}
    done = {name: [receipts[partition.label] for partition in partitions] for name, partitions in plan.partitions.items()}
    for name, partitions in plan.partitions.items():
        # The sampler numbers sequences by the order of rows: it follows from names alone, never from who was ready first.
        # Those of an import are in the order of its files: the same tokens in files of other names are the same sequences.
        found = [row for receipt in done[name] for row in receipt.shards]
        is_import = any(partition.tokens is not None for partition in partitions)
        rows += found if is_import else sorted(found, key=lambda row: (row.split, row.path))
        statistics[name] = dict(_of_source(name, plan, receipts)[0])
    info = CatalogInfo(
        block_tokens=plan.shards.block_tokens,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        bos_ids=tokenizer.bos_ids,
        tokenizer_sha256=tokenizer.sha256,
        recipe_hash=hash_of(plan.sections),
        inputs_hash=hash_of_inputs(receipts.values()),
        sources=tuple(inputs.name for inputs in plan.inputs.values() if inputs.is_source),
        target_files=tuple(inputs.name for inputs in plan.inputs.values() if not inputs.is_source),
        statistics=statistics,
        example_tokens=plan.example_tokens,
        sample=sample_of(thinnings, plan.shards, done),
    )
    return Catalog(plan.workdir.root, info, rows)


def require_readable(plan: PreprocessPlan, receipts: Mapping[str, Receipt]) -> None:
    """Refuse a source or target of which every record is bad, even where bad records are to be left out; as far as they are done.

    Raises:
        InputError: names the source and the first of them.
    """
    for name, inputs in plan.inputs.items():
        counts, first = _of_source(name, plan, receipts)
        is_done = all(partition.label in receipts for partition in plan.partitions[name])
        read = ("num_documents", "num_empty", "num_leaked_documents", "num_skipped", "num_without_loss")
        if is_done and first and not any(counts[key] for key in read):
            problem = f"all of its {counts['num_bad_records']} records are bad, the first is {first}"
            raise InputError(inputs.where, problem, "name the key that holds its text, or take it out")


def _of_source(name: str, plan: PreprocessPlan, receipts: Mapping[str, Receipt]) -> tuple[Counter[str], str]:
    """Counts of a source, and its first bad record."""
    done = [receipts[partition.label] for partition in plan.partitions[name] if partition.label in receipts]
    counts: Counter[str] = Counter()
    for receipt in done:
        counts.update(receipt.counts)
    return counts, next((receipt.first_bad_record for receipt in done if receipt.first_bad_record), "")


def bad_record_warnings(plan: PreprocessPlan, receipts: Mapping[str, Receipt]) -> list[str]:
    """One line for each source that left out bad records."""
    warnings = []
    for name, inputs in plan.inputs.items():
        counts, first = _of_source(name, plan, receipts)
        if first:
            is_kept = inputs.section.on_bad_record == "quarantine"
            kept = f" and kept in {plan.workdir.quarantine}" if is_kept else ""
            warnings.append(f"{inputs.where}: {counts['num_bad_records']} bad records were left out{kept}; the first is {first}")
    return warnings


def require_held_out(plan: PreprocessPlan, receipts: Mapping[str, Receipt]) -> None:
    """Refuse a target without a held-out document.

    Raises:
        InputError: names the target and how it gets some.
    """
    for name in plan.targets:
        if any(receipts[p.label].holds_out for p in plan.partitions[name] if p.origin != "train"):
            continue
        inputs = plan.inputs[name]
        if inputs.valid_tokens is not None:
            remedy = f"give {inputs.where} more"
        elif inputs.valid_files:
            remedy = f"put documents into {inputs.where}.{'valid_files' if inputs.is_source else 'files'}"
        else:
            remedy = f"raise shards.valid_fraction from {plan.shards.valid_fraction}, or give {inputs.where}.valid_files"
            if any(receipts[p.label].sample is not None for p in plan.partitions[name]):
                remedy = f"raise shards.sample from {plan.shards.sample}, or {remedy}"
        problem = "none of its documents is held out"
        counts = [receipts[p.label].counts for p in plan.partitions[name]]
        if any(count["num_skipped"] + count["num_without_loss"] for count in counts):
            problem = f"none of its held-out examples has a token to learn within {plan.example_tokens} tokens"
            remedy = f"{_LONGER}, or {remedy}"
        raise InputError(f"target {name}", problem, remedy)


def require_usable(plan: PreprocessPlan, catalog: Catalog) -> list[str]:
    """Refuse sources and targets that are too small for a search, now and not an hour later.

    Returns:
        Warnings of targets that are hardly large enough.

    Raises:
        InputError: a source is smaller than one sequence or has no token that carries loss, or a half of a target is or has none. Without
            a length of sequences, only a source without any training token is refused.
    """
    length = plan.sequence_length
    sample = catalog.info.sample
    for name in catalog.sources:
        num_tokens = catalog.num_tokens(name)
        if sample is not None and name in sample.sources and num_tokens <= (length or 0):
            problem = f"its sample has {num_tokens} training tokens"
            raise InputError(f"source {name}", problem, f"raise shards.sample from {sample.num_tokens}")
        where, problem = f"source {name}", f"its training split has {num_tokens} tokens"
        if num_tokens <= (length or 0):
            _require_no_copies(plan, catalog, name)
        # A window of examples is a sequence, or part of one, and its last label carries no loss.
        is_packed = plan.inputs[name].section.has_mask
        if (
            is_packed
            and num_tokens == 0
            and any(catalog.info.statistics[name][key] for key in ("num_skipped", "num_without_loss"))
        ):
            raise InputError(where, f"{problem}: no example has a token to learn within {plan.example_tokens} tokens", _LONGER)
        if length is not None and num_tokens <= length and not (is_packed and num_tokens):
            problem += f", less than one sequence of {length} and its last label"
            raise InputError(where, problem, "give it more text, remove it, or lower training.sequence_length")
        if num_tokens == 0:
            raise InputError(where, problem, "give it more text, or remove it")
        if not any(row.num_loss_tokens for row in catalog.shards(name, "train")):
            raise InputError(
                where, f"{problem}, none of which carries loss", "see that its completions are not empty, or remove it"
            )
    if length is None or not plan.targets:
        return []
    few = few_documents({name: documents_seen(catalog, name) for name in plan.targets})
    return [*check_halves(catalog, plan.targets, sequence_length=length), *few]


def _require_no_copies(plan: PreprocessPlan, catalog: Catalog, name: str) -> None:
    """Refuse a source that is too small because most of its training documents are held out."""
    counts = catalog.info.statistics[name]
    num_copies = counts.get("num_leaked_documents", 0)
    num_left = sum(row.num_documents for row in catalog.shards(name, "train"))
    if num_copies <= num_left:
        return
    copies = f"{num_copies} of its {num_copies + num_left} training documents are held out too and were left out"
    if plan.inputs[name].valid_files:
        problem = f"{copies}: valid_files hold the same documents as files"
        remedy = "put other documents into valid_files, or leave them out: shards.valid_fraction then holds some of files out"
    else:
        problem, remedy = (
            f"{copies}: they are in a target's files or another source's valid_files",
            "take them out of there, or remove it",
        )
    raise InputError(f"source {name}", problem, remedy)


def describe_catalog(catalog: Catalog) -> str:
    """One line of a catalog's size, and of how full the windows are that examples are packed into."""
    train = sum(row.num_tokens for row in catalog.rows if row.split == "train")
    valid = sum(row.num_tokens for row in catalog.rows if row.split == "valid")
    return (
        f"{len(catalog.sources)} sources, {format_count(train)} training and {format_count(valid)} held-out tokens in "
        f"{len(catalog.rows)} shards ({padding_share(catalog):.1%} padding){_describe_fill(catalog)}"
    )


def padding_share(catalog: Catalog) -> float:
    """Share of all positions in the shards that hold no token of a document, because a partition ends before its last block does."""
    num_positions = sum(row.num_blocks for row in catalog.rows) * catalog.info.block_tokens
    return 1 - sum(row.num_tokens for row in catalog.rows) / max(1, num_positions)


def padding_warning(catalog: Catalog) -> list[str]:
    """A line where much of the shards is padding."""
    share = padding_share(catalog)
    if share <= _MUCH_PADDING:
        return []
    return [
        f"{share:.0%} of the positions in the shards are padding: each source, split and partition ends in a block that is not full; "
        f"lower shards.block_tokens from {catalog.info.block_tokens}, or raise shards.max_partition_bytes"
    ]


def _describe_fill(catalog: Catalog) -> str:
    names = (*catalog.sources, *catalog.targets_from_files)
    fills = [f"{name} {fill:.1%}" for name in names if (fill := catalog.fill(name)) is not None]
    return f"; examples fill their windows of {catalog.info.example_tokens} tokens: {and_more(fills, shown=8)}" if fills else ""


def count_warnings(catalog: Catalog) -> list[str]:
    """One line for each kind of thing that was replaced or left out."""
    warnings = []
    for key, text in (_COUNTED | _OF_EXAMPLES).items():
        counts = {name: statistics[key] for name, statistics in catalog.info.statistics.items() if statistics.get(key)}
        if counts:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            remedy = f"; to keep longer ones whole, {_LONGER}" if key in _OF_EXAMPLES else ""
            said = text.format(window=catalog.info.example_tokens)
            warnings.append(f"{sum(counts.values())} {said} ({listed}){remedy}")
    return warnings
