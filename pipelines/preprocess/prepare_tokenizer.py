"""Making a run's tokenizer before the work starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from fastmix_data.arrow_arrays import numbers
from fastmix_data.atomic_files import atomic_file, hash_of, read_json, write_json
from fastmix_data.errors import MismatchError
from fastmix_data.permutation import derive_keys, permute
from fastmix_data.progress import Advance, progress
from fastmix_data.recipe.sources import TokenizerSection, TrainTokenizer
from fastmix_data.tokens.control_tokens import ControlTokens
from fastmix_data.tokens.tokenizer import (
    END_OF_TEXT,
    TokenizerInfo,
    byte_tokenizer,
    describe_tokenizer,
    download_beside,
    download_tokenizer,
    load_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from fastmix_data.workdir import CHAT_TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, Workdir
from pipelines.inputs.files import SourceInputs
from pipelines.inputs.partitions import Partition
from pipelines.preprocess.chat_templates import rendering_of
from pipelines.preprocess.held_out import hash_documents, is_held_out
from pipelines.preprocess.plan import FIRST_READ_BYTES, PreprocessPlan, wants_bos
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.readers import read_partition
from pipelines.rendering.rendering import render_documents

# The keys of the section that decide which files the tokenizer has; the rest is read from them.
_ORIGINS = {"train", "file", "hf", "bytes"}
_BESIDE = (TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE)
# Of a tokenizer that is yet to be trained.
_CONTROL = ControlTokens({END_OF_TEXT: 0}, {END_OF_TEXT: END_OF_TEXT})
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
    origin = hash_of([section.model_dump(include=_ORIGINS), _identity(plan)])
    if not (path.is_file() and origin_path.is_file() and read_json(origin_path).get("hash") == origin):
        files = _make(plan, quiet=quiet)
        # Other origins may give the same tokenizer: a training file with a new time, a hub's name instead of its file.
        if path.is_file() and not may_change and any(_content(plan.workdir, name) != content for name, content in files.items()):
            problem = "the tokenizer of the shards there is not the one the recipe gives now"
            raise MismatchError(path, problem, "run `fastmix preprocess --replace`, or name another workdir")
        # The tokenizer itself last: with it, all is there.
        for name, content in reversed(files.items()):
            _replace(path.parent / name, content)
        write_json(origin_path, {"hash": origin, "tokenizer": section.model_dump(exclude_none=True)})
    info = describe_tokenizer(path, eos_token=section.eos_token, bos=wants_bos(section), bos_token=section.bos_token)
    warnings: tuple[str, ...] = ()
    if section.train is not None and info.vocab_size < section.train.vocab_size:
        warnings = (
            f"tokenizer.train: the sample gave {info.vocab_size} tokens, not {section.train.vocab_size}; raise sample_bytes or give "
            "more text for a larger vocabulary",
        )
    return info, warnings


def _content(workdir: Workdir, name: str) -> bytes | None:
    path = workdir.tokenizer.parent / name
    return path.read_bytes() if path.is_file() else None


def _replace(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as file:
        file.write(content)


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
        contents = _files_of(plan.tokenizer_file).values()
        return [None if content is None else hashlib.sha256(content).hexdigest() for content in contents]
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


def _make(plan: PreprocessPlan, *, quiet: bool) -> dict[str, bytes | None]:
    """The tokenizer's files by name, `tokenizer.json` first; None for those that it does without."""
    section, name = plan.tokenizer, plan.workdir.tokenizer.name
    if plan.tokenizer_file is not None:
        return _files_of(plan.tokenizer_file)
    if section.hf is not None:
        return {name: download_tokenizer(section.hf).encode()} | {name: download_beside(section.hf, name) for name in _BESIDE}
    if section.train is not None:
        with progress("tokenizer", total=section.train.sample_bytes, unit="B", quiet=quiet) as advance:
            content = train_tokenizer(_sample(plan, section.train, advance), vocab_size=section.train.vocab_size)
    else:
        content = byte_tokenizer()
    return {name: content.encode()} | dict.fromkeys(_BESIDE)


def _files_of(tokenizer: Path) -> dict[str, bytes | None]:
    beside = {name: tokenizer.parent / name for name in _BESIDE}
    return {Workdir(Path()).tokenizer.name: tokenizer.read_bytes()} | {
        name: path.read_bytes() if path.is_file() else None for name, path in beside.items()
    }


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
            sample = _sample_of(
                partitions[index],
                source,
                min(part, wanted),
                seed=section.seed,
                valid_fraction=valid_fraction,
                template=plan.chat_templates.get(source.name),
            )
            for text in sample:
                wanted -= len(text)
                advance(len(text))
                yield text


def _sample_of(
    partition: Partition, source: SourceInputs, wanted: int, *, seed: int, valid_fraction: float, template: str | None
) -> list[str]:
    """About `wanted` characters of a partition: documents near its start, chosen by hash, held-out ones left out."""
    texts: list[str] = []
    keys: list[int] = []
    num_bytes_seen = 0
    rendering, _ = rendering_of(source, given=template, own=None, special_tokens={"eos_token": END_OF_TEXT})
    rendering = replace(rendering, special_tokens="token")  # the template's own are text here
    for batch in read_partition(partition, source.section, DocumentCounts(), batch_bytes=max(wanted, FIRST_READ_BYTES)):
        hashes = hash_documents(batch)
        # The tokenizer too must not have seen what losses are measured on.
        usable = np.flatnonzero(~is_held_out(hashes, valid_fraction))
        # By content, not by place: a file that is sorted by topic gives a sample that is not.
        chosen = batch.take(numbers(usable))
        rendered = render_documents(chosen, rendering, _CONTROL)
        keys += derive_keys(seed, hashes.view(np.int64)[usable[rendered.kept]]).tolist()
        # Where it is to be the token, it is no text to learn words from.
        drops = source.section.special_tokens == "token"
        texts += [text.replace(END_OF_TEXT, "\n") if drops else text for text in rendered.texts.texts]
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
