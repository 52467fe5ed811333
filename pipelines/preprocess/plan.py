"""The plan of a preprocess run: made once from a recipe, it has refused all that can be refused before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmix_data.atomic_files import hash_of
from fastmix_data.errors import InputError
from fastmix_data.recipe.fields import Key
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.sources import ShardsSection, SourceSection, TokenizerSection
from fastmix_data.recipe.target import TargetFiles, TargetSection
from fastmix_data.recipe.tokens import TokensSection
from fastmix_data.remote.shard_store import ShardStore
from fastmix_data.shards.shard_format import token_dtype
from fastmix_data.tokens.tokenizer import TokenizerInfo, byte_tokenizer_info, describe_tokenizer, load_tokenizer
from fastmix_data.workdir import Workdir
from pipelines.inputs.files import SourceInputs, resolve_inputs
from pipelines.inputs.formats import is_json
from pipelines.inputs.partitions import Partition, plan_partitions
from pipelines.inputs.token_files import TokenInputs, resolve_tokens
from pipelines.preprocess.chat_templates import own_chat_template, read_chat_template, rendering_of
from pipelines.preprocess.import_checks import check_imports
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.readers import read_partition

# Of a source of 100,000 files, the first ones tell whether its keys are right.
_PARTITIONS_OPENED_BEFOREHAND = 64
FIRST_READ_BYTES = 1 << 16
# What of the section is about a sample; the shards of the whole do not depend on it.
_OF_A_SAMPLE = {"sample", "sample_seed"}


@dataclass(frozen=True)
class PreprocessPlan:
    """What preprocessing has to do and where.

    Attributes:
        workdir: where everything is written.
        tokenizer: the recipe's section.
        tokenizer_file: the `tokenizer.json` that the section names, if it names one.
        shards: the recipe's section.
        inputs: what each source, then each target with files of its own, is read from, by name.
        partitions: the units of work of each input, by name.
        chat_templates: of inputs whose recipe names a file of Jinja, its text, by name.
        targets: names of inputs that are no use without held-out documents.
        sequence_length: tokens of a training sequence; None if the recipe has no training section (yet).
        example_tokens: tokens of the windows that examples are packed into; None if no source or target is of examples.
        sections: the parts of the recipe that decide what is written, as JSON.
        store: what the recipe says that the shards were copied to, if it does; they need not be in the workdir any more then.
    """

    workdir: Workdir
    tokenizer: TokenizerSection
    tokenizer_file: Path | None
    shards: ShardsSection
    inputs: Mapping[str, SourceInputs]
    partitions: Mapping[str, Sequence[Partition]]
    chat_templates: Mapping[str, str]
    targets: tuple[str, ...]
    sequence_length: int | None
    example_tokens: int | None
    sections: Mapping[str, Any]
    store: ShardStore | None = None

    @property
    def sources(self) -> list[SourceInputs]:
        """What can be trained on, in the order of the recipe."""
        return [inputs for inputs in self.inputs.values() if inputs.is_source]

    def all_partitions(self) -> Iterator[Partition]:
        """Every unit of work, in the order of the recipe."""
        return (partition for partitions in self.partitions.values() for partition in partitions)


def plan_preprocess(recipe: Recipe) -> PreprocessPlan:
    """Find the files of a recipe and cut them into partitions; read the tokenizer file and the first documents.

    Raises:
        FastmixError: one line that names the key of the recipe or the file.
    """
    tokenizer_file = None if recipe.tokenizer.file is None else recipe.resolve(recipe.tokenizer.file)
    if tokenizer_file is not None:
        section = recipe.tokenizer
        load_tokenizer(tokenizer_file)
        describe_tokenizer(tokenizer_file, eos_token=section.eos_token, bos=wants_bos(section), bos_token=section.bos_token)
    shards, target_files = recipe.shards, {} if recipe.target is None else recipe.target.files
    size = shards.max_partition_bytes
    inputs = resolve_inputs(recipe.sources, target_files, base=recipe.base, max_partition_bytes=size)
    known = _known_tokenizer(recipe, tokenizer_file)
    inputs = {name: _with_tokens(source, recipe, known) for name, source in inputs.items()}
    if recipe.target is not None:
        _require_held_out_part(recipe.target, inputs, shards)
    partitions = {name: plan_partitions(source, max_partition_bytes=size) for name, source in inputs.items()}
    chat_templates = _chat_templates(recipe, inputs, tokenizer_file)
    for name, source in inputs.items():
        _open_first_documents(source, partitions[name])
    example_tokens = recipe.example_tokens if any(source.has_mask for source in inputs.values()) else None
    if known is not None:
        check_imports(imports_of(inputs), known, example_tokens=example_tokens)
    return PreprocessPlan(
        workdir=recipe.paths,
        tokenizer=recipe.tokenizer,
        tokenizer_file=tokenizer_file,
        shards=shards,
        inputs=inputs,
        partitions=partitions,
        chat_templates=chat_templates,
        targets=() if recipe.target is None else (*recipe.target.sources, *target_files),
        sequence_length=None if recipe.training is None else recipe.training.sequence_length,
        example_tokens=example_tokens,
        sections=_sections(recipe, target_files, chat_templates, example_tokens=example_tokens),
        store=None if recipe.storage is None or recipe.storage.shards is None else recipe.store,
    )


def wants_bos(section: TokenizerSection) -> bool | None:
    """What the recipe says of a token before every document; None leaves it to the tokenizer."""
    return None if section.bos == "auto" else section.bos


def _chat_templates(recipe: Recipe, inputs: Mapping[str, SourceInputs], tokenizer_file: Path | None) -> dict[str, str]:
    found = {}
    for name, source in inputs.items():
        choice = source.section.chat_template
        if choice not in (None, "tokenizer", "plain"):
            found[name] = read_chat_template(recipe.resolve(choice), where=f"{source.where}.chat_template")
        # What comes from the hub is not here yet.
        if recipe.tokenizer.hf is None:
            rendering_of(
                source,
                given=found.get(name),
                own=None if tokenizer_file is None else own_chat_template(tokenizer_file),
                special_tokens={},
            )
    return found


def imports_of(inputs: Mapping[str, SourceInputs]) -> list[TokenInputs]:
    """All tokens of some inputs that are there already."""
    return [tokens for source in inputs.values() for tokens in (source.tokens, source.valid_tokens) if tokens is not None]


def _known_tokenizer(recipe: Recipe, tokenizer_file: Path | None) -> TokenizerInfo | None:
    """What the tokenizer of imports is, as far as it can be known without writing anything: a hub's is not here yet."""
    section = recipe.tokenizer
    if tokenizer_file is not None:
        return describe_tokenizer(
            tokenizer_file, eos_token=section.eos_token, bos=wants_bos(section), bos_token=section.bos_token
        )
    return byte_tokenizer_info() if section.bytes else None


def _with_tokens(source: SourceInputs, recipe: Recipe, known: TokenizerInfo | None) -> SourceInputs:
    """A source or target with the files of its tokens; of text, as it is."""
    section = source.section
    if section.tokens is None:
        return source

    def resolve(tokens: TokensSection, key: str) -> TokenInputs:
        return resolve_tokens(
            tokens,
            name=source.name,
            where=f"{source.where}.{key}",
            base=recipe.base,
            root=recipe.paths.root,
            dtype=None if known is None else token_dtype(known.vocab_size).name,
            block_tokens=recipe.shards.block_tokens,
        )

    tokens = resolve(section.tokens, "tokens")
    if not isinstance(section, SourceSection):
        # A target is only ever measured on.
        return replace(source, valid_tokens=tokens)
    valid = None if section.valid_tokens is None else resolve(section.valid_tokens, "valid_tokens")
    _require_apart(source, tokens, valid)
    return replace(source, tokens=tokens, valid_tokens=valid)


def _require_apart(source: SourceInputs, tokens: TokenInputs, valid: TokenInputs | None) -> None:
    if valid is None:
        return
    in_valid = {file.path.resolve() for file in valid.files}
    for file in tokens.files:
        if file.path.resolve() in in_valid:
            raise InputError(source.where, f"{file.name} is in tokens and in valid_tokens", "narrow one of the patterns")
    kinds = {(file.dtype, file.mask is None) for file in (*tokens.files, *valid.files)}
    if len(kinds) > 1:
        raise InputError(source.where, "tokens and valid_tokens differ in type, or only one has masks", "give both alike")


def _sections(
    recipe: Recipe, target_files: Mapping[str, TargetFiles], chat_templates: Mapping[str, str], *, example_tokens: int | None
) -> dict[str, Any]:
    # How much a target counts is the search's affair: a changed weight is no reason to make shards anew. Nor is it when a bad record
    # has stopped a run, and the next one is to leave it out: each receipt knows whether it suits (`Receipt.suits`).
    targets = {name: files.model_dump(mode="json", exclude={"weight", "on_bad_record"}) for name, files in target_files.items()}
    sources = {name: section.model_dump(mode="json", exclude={"on_bad_record"}) for name, section in recipe.sources.items()}
    return {
        # How much may be lost decides whether shards are made, not what is in them.
        "tokenizer": recipe.tokenizer.model_dump(mode="json", exclude={"max_unknown_fraction"}),
        "sources": sources,
        # Hashes leave the order of keys out, but the order of sources is that of every array over them.
        "order of sources": list(recipe.sources),
        # As it comes to: whether a length is stated or follows from the training section, the shards are the same.
        "shards": {
            # None is left out: workdirs did not speak of samples before there were any.
            **recipe.shards.model_dump(mode="json", exclude=None if recipe.shards.sample else _OF_A_SAMPLE),
            "example_tokens": example_tokens,
        },
        "target": {"files": targets},
        # None where there is none: before there were any, workdirs did not speak of them.
        "chat templates": {name: hash_of([text]) for name, text in chat_templates.items()} or None,
    }


def without_sample(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of the same recipe without a sample."""
    return {**sections, "shards": {key: value for key, value in sections["shards"].items() if key not in _OF_A_SAMPLE}}


def _require_held_out_part(target: TargetSection, inputs: Mapping[str, SourceInputs], shards: ShardsSection) -> None:
    for name in target.sources:
        source = inputs[name]
        brings_own = source.tokens is not None and any(row.split == "valid" for row in source.tokens.rows)
        if not (source.valid_files or source.valid_tokens or brings_own) and shards.valid_fraction == 0:
            remedy = f"give sources.{name}.valid_files, or raise shards.valid_fraction"
            raise InputError("target.sources", f"{name} has no held-out documents", remedy)


def _has_records(partition: Partition, *, tables: bool) -> bool:
    """Whether something in a partition has keys or, with `tables`, columns."""
    if partition.dataset is not None:
        return tables
    return any(is_json(file.format) or (tables and file.format == "parquet") for file in partition.files)


def _open_first_documents(source: SourceInputs, partitions: Sequence[Partition]) -> None:
    """Read the beginning of a source's files of records. Of plain columns, the types of a table have told all there is to see."""
    is_plain = source.section.messages is None and all(
        isinstance(field, Key) and field.is_plain for field in source.section.fields
    )
    begins = [partition for partition in partitions if partition.start == 0 and _has_records(partition, tables=not is_plain)]
    for partition in begins[:_PARTITIONS_OPENED_BEFOREHAND]:
        next(read_partition(partition, source.section, DocumentCounts(), batch_bytes=FIRST_READ_BYTES), None)
