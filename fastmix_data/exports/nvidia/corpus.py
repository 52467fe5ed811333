"""A manifest and the held-out tokens beside it as Megatron's files: what is written, what a blend says, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastmix_data.errors import FastmixError
from fastmix_data.exports.format import ExportRequest, Keeps
from fastmix_data.exports.held_out import held_out_of
from fastmix_data.exports.nvidia.index_file import MAX_VOCAB_SIZE
from fastmix_data.exports.nvidia.token_files import TokenFile, WriteTokenFile, train_files, valid_files
from fastmix_data.exports.part_tokens import label_remarks
from fastmix_data.exports.pools import pools_of
from fastmix_data.messages import and_more

_MOST_FILES = 32_766  # of a blend: Megatron numbers them with 16 bits, and refuses the last number


class MegatronFiles:
    """What formats over Megatron's files share; each adds its name, reader and `finish`."""

    runs_in: Literal["threads", "processes"] = "threads"
    keeps = Keeps(
        order="no: shuffled by its own seed",
        shares="yes, to three windows of each file",
        epochs="yes, to three windows of each file",
        masks="no",
        examples="no",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        """What the readers do not see; raises where the files cannot hold the manifest."""
        return corpus_of(request).remarks

    def tasks(self, request: ExportRequest) -> Sequence[WriteTokenFile]:
        """One for each file."""
        return corpus_of(request).tasks


@dataclass(frozen=True)
class Corpus:
    """What an export writes.

    Attributes:
        train, valid: files in the order of the blends.
        remarks: what Megatron's readers do not see of the manifest, a sentence each.
    """

    request: ExportRequest
    train: tuple[TokenFile, ...]
    valid: tuple[TokenFile, ...]
    remarks: tuple[str, ...]

    @property
    def tasks(self) -> list[WriteTokenFile]:
        """One for each file."""
        return [*map(WriteTokenFile, self.train), *(WriteTokenFile(file, check_shards=True) for file in self.valid)]

    @property
    def sequence_length(self) -> int:
        """The length for which figures are given: a block, which is the longest that does not cut through blocks."""
        return self.request.manifest.block_tokens

    @property
    def num_train_samples(self) -> int:
        """Windows of `sequence_length` that a run over the whole manifest reads."""
        return sum(file.num_windows(self.sequence_length) for file in self.train)

    @property
    def train_blend(self) -> list[str]:
        """Weights and prefixes in turn. A weight is the number of tokens that a run reads of a file, so that shares are the manifest's."""
        return [word for file in self.train for word in (str(file.repeats * file.num_tokens), self._absolute(file))]

    @property
    def valid_blend(self) -> list[str]:
        """Prefixes alone: without weights, every held-out token is read once."""
        return [self._absolute(file) for file in self.valid]

    def _absolute(self, file: TokenFile) -> str:
        return str(self.request.directory / file.prefix)


def corpus_of(request: ExportRequest) -> Corpus:
    """The plan of an export, made once; opens no shard.

    Raises:
        FastmixError: token ids or files are more than the format can number.
    """
    return request.once(_plan)


def _plan(request: ExportRequest) -> Corpus:
    manifest = request.manifest
    if manifest.vocab_size > MAX_VOCAB_SIZE:
        problem = f"its vocabulary of {manifest.vocab_size} tokens does not fit into signed 32-bit integers, the format's largest"
        raise FastmixError(manifest.path, problem, "export it in another format; --to list shows them")
    train = train_files(request)
    if len(train) > _MOST_FILES:
        remedy = (
            "export with a larger --max-file-bytes"
            if request.files == "copy"
            else "export with --files copy, which merges shards"
        )
        raise FastmixError(manifest.path, f"makes {len(train)} files, and a blend holds {_MOST_FILES}", remedy)
    valid, about_valid = _valid(request)
    return Corpus(request, tuple(train), valid, (*_about_order(request, train), *_about_masks(request), *about_valid))


def _valid(request: ExportRequest) -> tuple[tuple[TokenFile, ...], Sequence[str]]:
    """The held-out files, and what is left out of them."""
    held_out, block_tokens = held_out_of(request), request.manifest.block_tokens
    files = valid_files(request, held_out.parts)
    # Without weights Megatron takes a file once, and stops at one that has no whole window.
    short = [file for file in files if not file.num_windows(block_tokens)]
    if not short:
        return tuple(files), held_out.remarks
    names = and_more(list(dict.fromkeys(file.parts[0].source for file in short)))
    tokens = sum(file.num_tokens for file in short)
    about = f"{tokens} held-out tokens of {names} are left out: Megatron refuses files shorter than a window of {block_tokens}"
    return tuple(file for file in files if file not in short), [about]


def _about_order(request: ExportRequest, train: Sequence[TokenFile]) -> list[str]:
    block_tokens, total = request.manifest.block_tokens, request.manifest.num_tokens
    around = len(train) * block_tokens
    remarks = [
        *label_remarks(request.manifest),
        "the order is Megatron's own shuffle: the second reading of a sequence may come before the first of another",
        "Megatron reads whole windows of each file, and some files a window or two more or less often than their share: at "
        f"{block_tokens} tokens a window and {len(train)} files, about {around} of {total} tokens ({around / total:.2%})",
    ]
    if any(file.is_shard for file in train):
        remarks.append(
            f"shards are read as they lie, and their blocks of {block_tokens} tokens are shuffled, so one label of {block_tokens} is the "
            "first token of another block; for longer windows, --files copy keeps documents whole"
        )
    return remarks


def _about_masks(request: ExportRequest) -> list[str]:
    masked = [pool for pool in pools_of(request.manifest) if pool.has_mask]
    if not masked:
        return []
    tokens = sum(pool.repeats * pool.num_tokens for pool in masked)
    names = and_more(list(dict.fromkeys(pool.source for pool in masked)))
    return [
        f"GPTDataset has no masks: every one of the {tokens} tokens of {names} carries loss there, prompts and padding included, and "
        "examples in a window attend to each other"
    ]
