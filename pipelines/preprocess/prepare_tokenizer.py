"""Making a run's tokenizer before the work starts, and choosing the library that encodes each source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from fastmix_data.arrow_arrays import numbers
from fastmix_data.atomic_files import atomic_file, hash_of, read_json, write_json
from fastmix_data.errors import MismatchError
from fastmix_data.permutation import derive_keys, permute
from fastmix_data.progress import Advance, progress
from fastmix_data.recipe.sources import TokenizerSection, TrainTokenizer
from fastmix_data.tokens.encoding import Backend, Encoder, first_difference
from fastmix_data.tokens.tokenizer import (
    TokenizerInfo,
    byte_tokenizer,
    describe_tokenizer,
    download_tokenizer,
    load_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from pipelines.inputs.files import SourceInputs
from pipelines.inputs.partitions import Partition
from pipelines.preprocess.held_out import hash_documents, is_held_out
from pipelines.preprocess.plan import FIRST_READ_BYTES, PreprocessPlan
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.documents import column_names
from pipelines.reading.readers import read_partition

_CHECKED_DOCUMENTS = 16
_CHECKED_CHARACTERS = 16_384
# A sampled part of a source is at most this share of it, so that the sample does not come from one file.
_PARTS_OF_A_SAMPLE = 16
# Documents are chosen from a window this many times larger than what is taken.
_WINDOW = 4


def prepare_tokenizer(plan: PreprocessPlan, *, may_change: bool, quiet: bool) -> tuple[TokenizerInfo, tuple[str, ...]]:
    """Make `tokenizer/tokenizer.json`, or keep the one that is there if it was made from the same things.

    Args:
        may_change: whether a tokenizer that differs from the one on disk may take its place.
    Returns:
        What the tokenizer is, and warnings.
    Raises:
        RecipeError: the tokenizer cannot be had, or has no end-of-text token.
        MismatchError: it changed under shards that were made with it.
    """
    section, path, origin_path = plan.tokenizer, plan.workdir.tokenizer, plan.workdir.tokenizer_origin
    origin = hash_of([section.model_dump(), _identity(plan)])
    if not (path.is_file() and origin_path.is_file() and read_json(origin_path).get("hash") == origin):
        content = _make(plan, quiet=quiet).encode()
        # Other origins may give the same tokenizer: a training file with a new time, a hub's name instead of its file.
        if path.is_file() and path.read_bytes() != content and not may_change:
            problem = "the tokenizer of the shards there is not the one the recipe gives now"
            raise MismatchError(path, problem, "run `fastmix preprocess --replace`, or name another workdir")
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


def expected_vocabulary(section: TokenizerSection, *, base: Path) -> int | None:
    """Size of the vocabulary as far as it can be known without making the tokenizer: at most, where it is trained; None for a hub's.

    Args:
        base: folder that a relative path starts from.

    Raises:
        RecipeError: the tokenizer's file is none.
    """
    if section.train is not None:
        return section.train.vocab_size
    if section.file is not None:
        return vocabulary_size(load_tokenizer(base / Path(section.file).expanduser()))
    return vocabulary_size(Tokenizer.from_str(byte_tokenizer())) if section.bytes else None


def _identity(plan: PreprocessPlan) -> object:
    """What the tokenizer is made from, as far as it can be known without making it."""
    if plan.tokenizer_file is not None:
        return hashlib.sha256(plan.tokenizer_file.read_bytes()).hexdigest()
    if plan.tokenizer.train is not None:
        # Sizes and times, not content: to hash a corpus that is done already would be the longest part of doing nothing.
        return [
            (file.name, file.num_bytes, file.version)
            for source in plan.sources
            for partition in _training_partitions(plan, source)
            for file in partition.files
        ]
    return None


def _training_partitions(plan: PreprocessPlan, source: SourceInputs) -> list[Partition]:
    return [partition for partition in plan.partitions[source.name] if partition.origin != "valid"]


def _make(plan: PreprocessPlan, *, quiet: bool) -> str:
    section = plan.tokenizer
    if section.train is not None:
        with progress("tokenizer", total=section.train.sample_bytes, unit="B", quiet=quiet) as advance:
            return train_tokenizer(_sample(plan, section.train, advance), vocab_size=section.train.vocab_size)
    if plan.tokenizer_file is not None:
        return plan.tokenizer_file.read_text(encoding="utf-8")
    if section.hf is not None:
        return download_tokenizer(section.hf)
    return byte_tokenizer()


def _sample(plan: PreprocessPlan, section: TrainTokenizer, advance: Advance) -> Iterator[str]:
    """Training documents for the tokenizer, an equal number of bytes from each source.

    Equal, not proportional: which sources will count is what the search is for, and a small one should not be spelt in bytes.
    """
    for number, source in enumerate(plan.sources):
        partitions = _training_partitions(plan, source)
        order = permute(np.arange(len(partitions)), size=len(partitions), key=derive_keys(section.seed, number))
        wanted = section.sample_bytes // len(plan.sources)
        part = -(-wanted // min(len(partitions), _PARTS_OF_A_SAMPLE))
        for index in order.tolist():
            if wanted <= 0:
                break
            valid_fraction = plan.shards.valid_fraction if partitions[index].origin == "both" else 0.0
            for text in _sample_of(partitions[index], source, min(part, wanted), section.seed, valid_fraction):
                wanted -= len(text)
                advance(len(text))
                yield text


def _sample_of(partition: Partition, source: SourceInputs, wanted: int, seed: int, valid_fraction: float) -> list[str]:
    """About `wanted` characters of a partition: documents near its start, chosen by hash, held-out ones left out."""
    texts: list[str] = []
    keys: list[int] = []
    num_bytes_seen = 0
    for batch in read_partition(partition, source.section, DocumentCounts(), batch_bytes=max(wanted, FIRST_READ_BYTES)):
        hashes = hash_documents(batch)
        # The tokenizer too must not have seen what losses are measured on.
        usable = np.flatnonzero(~is_held_out(hashes, valid_fraction))
        # By content, not by place: a file that is sorted by topic gives a sample that is not.
        keys += derive_keys(seed, hashes.view(np.int64)[usable]).tolist()
        chosen = batch.take(numbers(usable))
        columns = [chosen.column(name).to_pylist() for name in column_names(source.section)]
        texts += [source.section.separator.join(parts) for parts in zip(*columns, strict=True)]
        num_bytes_seen += batch.nbytes
        if num_bytes_seen >= _WINDOW * wanted:
            break
    sample: list[str] = []
    for index in sorted(range(len(texts)), key=keys.__getitem__):
        if wanted <= 0:
            break
        sample.append(texts[index][:wanted])
        wanted -= len(sample[-1])
    return sample


def choose_backend(
    source: SourceInputs, partition: Partition, *, reference: Encoder, fast: Encoder
) -> tuple[Backend, str | None]:
    """Compare both libraries on a source's first documents.

    Per source: where they differ, it is in how they treat some script or white space, which other sources may not have.

    Returns:
        The library to encode the source with, and a warning if it is the slow one.
    """
    texts: list[str] = []
    places: list[str] = []
    batch = next(read_partition(partition, source.section, DocumentCounts(), batch_bytes=FIRST_READ_BYTES), None)
    if batch is not None:
        first = batch.slice(0, _CHECKED_DOCUMENTS)
        locators = [f"{row['file']}, {row['locator']}" for row in first.select(["file", "locator"]).to_pylist()]
        for name in column_names(source.section):
            texts += [text[:_CHECKED_CHARACTERS] for text in first.column(name).to_pylist()]
            places += locators
    difference = first_difference(reference, fast, texts)
    if difference is None:
        return "fastokens", None
    return "tokenizers", (
        f"{source.where}: encoded with the slower `tokenizers` because fastokens differs from it in {places[difference.text]}, token "
        f"{difference.position}: id {difference.other_id} instead of {difference.reference_id}"
    )
