"""From documents to tokens, in flat arrays: no Python object per token anywhere.

`fastokens` encodes; `tokenizers` is the reference it is checked against and the fallback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Mask, Tokens
from fastmix_data.errors import FastmixError
from fastmix_data.tokens.tokenizer import load_tokenizer

Backend = Literal["fastokens", "tokenizers"]
TokenIds = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]


class Encoder:
    """Encodes batches of text with one of the two libraries."""

    def __init__(self, path: Path, *, backend: Backend = "fastokens") -> None:
        """Read a `tokenizer.json`.

        Raises:
            FastmixError: the library cannot read it.
        """
        self.backend = backend
        if backend == "tokenizers":
            self._slow = load_tokenizer(path)
            return
        # Imported late: its thread pool takes its size from the environment that the worker has set by now.
        import fastokens

        try:
            self._fast = fastokens.Tokenizer.from_file(str(path))
        except (ValueError, RuntimeError, OSError, TypeError) as error:
            raise FastmixError(path, f"fastokens cannot read this tokenizer ({error})") from error
        self._fast.no_truncation()
        self._fast.no_padding()

    def encode_flat(self, texts: list[str]) -> tuple[TokenIds, Offsets]:
        """Token ids of all texts one after the other, and where each text's begin: shape (len(texts) + 1,)."""
        if self.backend == "fastokens":
            ids, offsets = self._fast.encode_batch_flat(texts, add_special_tokens=False)
            return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.int64)
        encodings = self._slow.encode_batch_fast(texts, add_special_tokens=False)
        lengths = [len(encoding) for encoding in encodings]
        # `fromiter` with a known count: a list of all ids would be an object per token.
        flat = np.fromiter((token for encoding in encodings for token in encoding.ids), np.uint32, sum(lengths))
        return flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents as one run of tokens, an end-of-text token after each.

    Attributes:
        tokens: all tokens, in the shards' dtype.
        ends_D: past-the-last position of each document, its end-of-text token included, shape (num_documents,).
        num_prompt_tokens_D: tokens at the start of each document that carry no loss.
        loss_mask: one value per token, or None where every token carries loss.
    """

    tokens: Tokens
    ends_D: Offsets
    num_prompt_tokens_D: Offsets
    loss_mask: Mask | None

    @property
    def starts_D(self) -> Offsets:
        """First position of each document."""
        return np.concatenate([np.zeros(1, np.int64), self.ends_D[:-1]])[: len(self.ends_D)]


def encode_documents(
    encoder: Encoder, columns: Sequence[list[str]], *, separator: str, eos_id: int, dtype: np.dtype[np.unsignedinteger]
) -> EncodedDocuments:
    """Encode texts, or prompts and completions.

    A prompt with its separator and the completion are encoded apart, so that the border of the loss lies between two tokens.

    Args:
        columns: (texts,) or (prompts, completions), each of shape (num_documents,).
        separator: text between prompt and completion; unused for plain texts.
    """
    if len(columns) == 1:
        ids, offsets = encoder.encode_flat(columns[0])
        return _with_ends(ids, offsets[1:], np.zeros(len(columns[0]), np.int64), eos_id=eos_id, dtype=dtype, masked=False)
    # Encoded apart: in one text the tokenizer could merge the prompt's end with the completion's start into a token of both.
    segments = [text for prompt, completion in zip(*columns, strict=True) for text in (prompt + separator, completion)]
    ids, offsets = encoder.encode_flat(segments)
    num_prompt_tokens_D = offsets[1::2] - offsets[:-1:2]
    return _with_ends(ids, offsets[2::2], num_prompt_tokens_D, eos_id=eos_id, dtype=dtype, masked=True)


def _with_ends(
    ids: TokenIds,
    text_ends_D: Offsets,
    num_prompt_tokens_D: Offsets,
    *,
    eos_id: int,
    dtype: np.dtype[np.unsignedinteger],
    masked: bool,
) -> EncodedDocuments:
    num_documents = len(text_ends_D)
    ends_D = text_ends_D + np.arange(1, num_documents + 1)
    tokens = np.empty(len(ids) + num_documents, dtype)
    is_text = np.ones(len(tokens), np.bool_)
    is_text[ends_D - 1] = False
    tokens[is_text] = ids
    tokens[ends_D - 1] = eos_id
    if not masked:
        return EncodedDocuments(tokens, ends_D, num_prompt_tokens_D, None)
    # Each document is a run of zeros, its prompt, and a run of ones, the rest with its end-of-text token, which is to be learned too.
    lengths_D = np.diff(ends_D, prepend=0)
    runs = np.stack([num_prompt_tokens_D, lengths_D - num_prompt_tokens_D], axis=1).ravel()
    loss_mask = np.repeat(np.tile(np.array([0, 1], np.uint8), num_documents), runs)
    return EncodedDocuments(tokens, ends_D, num_prompt_tokens_D, loss_mask)


@dataclass(frozen=True)
class Difference:
    """Where two encoders first disagree: which text, which token, and the ids there (-1: no token)."""

    text: int
    position: int
    reference_id: int
    other_id: int


def first_difference(reference: Encoder, other: Encoder, texts: list[str]) -> Difference | None:
    """Compare two encoders on some texts; None if all ids are equal."""
    ids_a, offsets_a = reference.encode_flat(texts)
    ids_b, offsets_b = other.encode_flat(texts)
    for number in range(len(texts)):
        a, b = ids_a[offsets_a[number] : offsets_a[number + 1]], ids_b[offsets_b[number] : offsets_b[number + 1]]
        if not np.array_equal(a, b):
            shared = min(len(a), len(b))
            unequal = np.flatnonzero(a[:shared] != b[:shared])
            position = int(unequal[0]) if len(unequal) else shared
            at = [int(ids[position]) if position < len(ids) else -1 for ids in (a, b)]
            return Difference(number, position, at[0], at[1])
    return None
