"""Making a run's tokenizer before the work starts, and choosing the library that encodes each source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fastmix_data.artefacts import atomic_file, hash_of, read_json, write_json
from fastmix_data.errors import FastmixError, MismatchError
from fastmix_data.permutation import derive_keys, permute
from fastmix_data.progress import Advance, progress
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.sources import TokenizerSection, TrainTokenizer
from fastmix_data.tokens.encoding import Backend, Encoder, first_difference
from fastmix_data.tokens.tokenizer import (
    TokenizerInfo,
    byte_tokenizer,
    describe_tokenizer,
    download_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from pipelines.preprocess.arrow_arrays import numbers
from pipelines.preprocess.inputs import SourceInputs
from pipelines.preprocess.partition_job import hash_documents, is_held_out
from pipelines.preprocess.partitions import Partition
from pipelines.preprocess.read_counts import ReadCounts
from pipelines.preprocess.readers import column_names, read_partition

_CHECKED_DOCUMENTS = 16
_CHECKED_CHARACTERS = 16_384
_FIRST_READ_BYTES = 1 << 16
# A sampled part of a source is at most this share of it, so that the sample does not come from one file.
_PARTS_OF_A_SAMPLE = 16
# Documents are chosen from a window this many times larger than what is taken.
_WINDOW = 4

Plan = Mapping[str, Sequence[Partition]]


def prepare_tokenizer(
    recipe: Recipe, inputs: Mapping[str, SourceInputs], plan: Plan, *, root: Path, may_change: bool, quiet: bool
) -> tuple[TokenizerInfo, tuple[str, ...]]:
    """Make `tokenizer/tokenizer.json`, or keep the one that is there if it was made from the same things.

    Args:
        may_change: whether a tokenizer that differs from the one on disk may take its place.
    Returns:
        What the tokenizer is, and warnings.
    Raises:
        RecipeError: the tokenizer cannot be had, or has no end-of-text token.
        MismatchError: it changed under shards that were made with it.
    """
    section = recipe.tokenizer
    path, origin_path = root / "tokenizer" / "tokenizer.json", root / "tokenizer" / "origin.json"
    origin = hash_of([section.model_dump(), _identity(section, recipe, inputs, plan)])
    if not (path.is_file() and origin_path.is_file() and read_json(origin_path).get("hash") == origin):
        content = _make(section, recipe, inputs, plan, quiet=quiet).encode()
        if path.is_file() and path.read_bytes() != content and not may_change:
            raise MismatchError(
                f"{path}: the tokenizer of the shards there is not the one the recipe gives now; run `fastmix preprocess --replace`, or "
                "name another workdir"
            )
        with atomic_file(path) as file:
            file.write(content)
        write_json(origin_path, {"hash": origin, "tokenizer": section.model_dump(exclude_none=True)})
    info = describe_tokenizer(path, eos_token=section.eos_token)
    warnings: tuple[str, ...] = ()
    if section.train is not None and info.vocab_size < section.train.vocab_size:
        warnings = (
            f"tokenizer.train: the sample gave {info.vocab_size} tokens, not {section.train.vocab_size}; raise sample_bytes or give "
            "more text for a larger vocabulary",
        )
    return info, warnings


def check_tokenizer(recipe: Recipe) -> None:
    """Refuse a tokenizer file that is missing, unreadable or without an end-of-text token, before any work.

    Raises:
        RecipeError: see `load_tokenizer` and `find_eos_token`.
    """
    if recipe.tokenizer.file is not None:
        describe_tokenizer_file(recipe)


def describe_tokenizer_file(recipe: Recipe) -> TokenizerInfo:
    """What `tokenizer.file` holds."""
    assert recipe.tokenizer.file is not None
    path = recipe.resolve(recipe.tokenizer.file)
    load_tokenizer(path)
    return describe_tokenizer(path, eos_token=recipe.tokenizer.eos_token)


def _identity(section: TokenizerSection, recipe: Recipe, inputs: Mapping[str, SourceInputs], plan: Plan) -> object:
    if section.file is not None:
        return hashlib.sha256(recipe.resolve(section.file).read_bytes()).hexdigest()
    if section.train is not None:
        sampled = [partition for name, source in inputs.items() if source.is_source for partition in plan[name]]
        return [
            (file.name, file.num_bytes, file.version)
            for partition in sampled
            if partition.origin != "valid"
            for file in partition.files
        ]
    return None


def _make(section: TokenizerSection, recipe: Recipe, inputs: Mapping[str, SourceInputs], plan: Plan, *, quiet: bool) -> str:
    if section.train is not None:
        with progress("tokenizer", total=section.train.sample_bytes, unit="B", quiet=quiet) as advance:
            sample = _counted(_sample(section.train, recipe, inputs, plan), advance)
            return train_tokenizer(sample, vocab_size=section.train.vocab_size)
    if section.file is not None:
        return recipe.resolve(section.file).read_text(encoding="utf-8")
    if section.hf is not None:
        return download_tokenizer(section.hf)
    return byte_tokenizer()


def _counted(texts: Iterator[str], advance: Advance) -> Iterator[str]:
    for text in texts:
        advance(len(text))
        yield text


def _sample(section: TrainTokenizer, recipe: Recipe, inputs: Mapping[str, SourceInputs], plan: Plan) -> Iterator[str]:
    """Training documents for the tokenizer, an equal number of bytes from each source."""
    sources = [source for source in inputs.values() if source.is_source]
    for number, source in enumerate(sources):
        partitions = [partition for partition in plan[source.name] if partition.origin != "valid"]
        order = permute(np.arange(len(partitions)), size=len(partitions), key=derive_keys(section.seed, number))
        wanted = section.sample_bytes // len(sources)
        part = -(-wanted // min(len(partitions), _PARTS_OF_A_SAMPLE))
        for index in order.tolist():
            if wanted <= 0:
                break
            fraction = recipe.shards.valid_fraction if partitions[index].origin == "both" else 0.0
            for text in _sample_of(partitions[index], source, min(part, wanted), section.seed, fraction):
                wanted -= len(text)
                yield text


def _sample_of(partition: Partition, source: SourceInputs, wanted: int, seed: int, valid_fraction: float) -> list[str]:
    """About `wanted` characters of a partition: documents near its start, chosen by hash, held-out ones left out."""
    texts: list[str] = []
    keys: list[int] = []
    seen = 0
    for batch in read_partition(partition, source.section, ReadCounts(), batch_bytes=max(wanted, _FIRST_READ_BYTES)):
        hashes = hash_documents(batch)
        usable = np.flatnonzero(~is_held_out(hashes, valid_fraction))
        keys += derive_keys(seed, hashes.view(np.int64)[usable]).tolist()
        chosen = batch.take(numbers(usable))
        columns = [chosen.column(name).to_pylist() for name in column_names(source.section)]
        texts += [source.section.separator.join(parts) for parts in zip(*columns, strict=True)]
        seen += batch.nbytes
        if seen >= _WINDOW * wanted:
            break
    sample: list[str] = []
    for index in sorted(range(len(texts)), key=keys.__getitem__):
        if wanted <= 0:
            break
        sample.append(texts[index][:wanted])
        wanted -= len(sample[-1])
    return sample


def choose_backend(
    source: SourceInputs, partition: Partition, tokenizer: TokenizerInfo, *, reference: Encoder
) -> tuple[Backend, str | None]:
    """Compare both libraries on a source's first documents.

    Returns:
        The library to encode the source with, and a warning if it is the slow one.
    """
    try:
        fast = Encoder(tokenizer.path, backend="fastokens")
    except FastmixError as error:
        return "tokenizers", f"{source.where}: encoded with the slower `tokenizers` because {error}"
    texts: list[str] = []
    places: list[str] = []
    for batch in read_partition(partition, source.section, ReadCounts(), batch_bytes=_FIRST_READ_BYTES):
        first = batch.slice(0, _CHECKED_DOCUMENTS)
        locators = [f"{row['file']}, {row['locator']}" for row in first.select(["file", "locator"]).to_pylist()]
        for name in column_names(source.section):
            texts += [text[:_CHECKED_CHARACTERS] for text in first.column(name).to_pylist()]
            places += locators
        break
    difference = first_difference(reference, fast, texts)
    if difference is None:
        return "fastokens", None
    return "tokenizers", (
        f"{source.where}: encoded with the slower `tokenizers` because fastokens differs from it in {places[difference.text]}, token "
        f"{difference.position}: id {difference.other_id} instead of {difference.reference_id}"
    )
