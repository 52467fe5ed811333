"""The two libraries that encode: `fastokens`, and `tokenizers`, the reference it is checked against and the fallback."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders

from fastmix_data.errors import FastmixError
from fastmix_data.messages import first_line
from fastmix_data.tokens.control_tokens import ControlTokens, control_tokens, largest_id, unknown_id, with_private_names
from fastmix_data.tokens.loss_borders import Span, Surfaces, token_surfaces
from fastmix_data.tokens.tokenizer import read_tokenizer, tokenizer_from

Backend = Literal["fastokens", "tokenizers"]
TokenIds = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]
_EncodeFlat = Callable[[list[str]], tuple[TokenIds, Offsets]]


def _library(content: str, *, backend: Backend, where: Path) -> _EncodeFlat:
    """One library's way to encode a batch."""

    @cache
    def by_reference() -> _EncodeFlat:
        return _flat_by_reference(tokenizer_from(content, where=where), where=where)

    if backend == "tokenizers":
        return by_reference()
    # Imported late: its thread pool takes its size from the environment that the worker has set by now.
    import fastokens

    try:
        fast = fastokens.Tokenizer.from_json_str(content)
    except (ValueError, RuntimeError, OSError, TypeError) as error:
        raise FastmixError(where, f"fastokens cannot read this tokenizer ({error})") from error
    fast.no_truncation()
    fast.no_padding()

    def encode(texts: list[str]) -> tuple[TokenIds, Offsets]:
        try:
            ids, offsets = fast.encode_batch_flat(texts, add_special_tokens=False)
        except (ValueError, RuntimeError):
            # It takes no text that holds a byte without a token, which the reference leaves out; how much that is, is watched elsewhere.
            return by_reference()(texts)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.int64)

    return encode


def _flat_by_reference(tokenizer: Tokenizer, *, where: Path) -> _EncodeFlat:
    def encode(texts: list[str]) -> tuple[TokenIds, Offsets]:
        try:
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises Exception itself
            raise _unknown_text(tokenizer, texts, error, where=where) from error
        lengths = [len(encoding) for encoding in encodings]
        # `fromiter` with a known count: a list of all ids would be an object per token.
        flat = np.fromiter((token for encoding in encodings for token in encoding.ids), np.uint32, sum(lengths))
        return flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    return encode


def _unknown_text(tokenizer: Tokenizer, texts: list[str], error: Exception, *, where: Path) -> FastmixError:
    """The error for a text that a tokenizer has no token for, where it has not even one that stands for the unknown."""
    for text in texts:
        try:
            tokenizer.encode(text, add_special_tokens=False)
        except Exception as again:  # the library raises Exception itself
            problem = f"cannot encode a text beginning {text[:40]!r} ({first_line(again)})"
            return FastmixError(where, problem, "choose a tokenizer that knows this text, or that has an unknown token")
    return FastmixError(where, f"cannot encode the text ({first_line(error)})")


class Encoder:
    """Encodes batches of text with one of the two libraries.

    Attributes:
        path: the `tokenizer.json`.
        content: its JSON, without what would be put around a text.
        control: its control tokens.
    """

    def __init__(self, path: Path, *, backend: Backend = "fastokens", control: Sequence[str] = ()) -> None:
        """Read a `tokenizer.json`.

        Args:
            control: control tokens besides those marked special.
        Raises:
            FastmixError: the library cannot read it.
        """
        self.backend: Backend = backend
        self.path = path
        text = read_tokenizer(path)
        self.encode_flat = _library(text, backend=backend, where=path)
        self.content = _parsed(text, where=path)
        self.control: ControlTokens = control_tokens(self.content, control)

    @cached_property
    def encode_private(self) -> _EncodeFlat:
        """Encodes texts in which control tokens have their private names, and where any other spelling of them is text."""
        return _library(with_private_names(self.content, self.control), backend=self.backend, where=self.path)

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return largest_id(self.content) + 1

    @cached_property
    def reference(self) -> Tokenizer:
        """The tokenizer in `tokenizers`, for offsets and for decoding; adds no token."""
        return tokenizer_from(json.dumps(self.content), where=self.path)

    @cached_property
    def _private_reference(self) -> Tokenizer:
        return tokenizer_from(with_private_names(self.content, self.control), where=self.path)

    def offsets_of(self, texts: list[str], *, are_private: bool) -> list[list[Span]]:
        """Which characters each token of some texts stands for."""
        tokenizer = self._private_reference if are_private else self.reference
        return [encoding.offsets for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decoded(self, text: str) -> str:
        """What a text comes back as, without what its tokenizer does not know."""
        (ids, _), unknown = self._encode_by_reference([text]), self.unknown_id
        return str(self._decoder.decode([token for token in ids.tolist() if token != unknown], skip_special_tokens=False))

    @cached_property
    def _encode_by_reference(self) -> _EncodeFlat:
        return _flat_by_reference(self.reference, where=self.path)

    @cached_property
    def _decoder(self) -> Tokenizer:
        # A file may lack the decoder that its tokens ask for; a byte-level one shows by its steps.
        if self.reference.decoder is None and "ByteLevel" in str(self.reference.pre_tokenizer):
            self.reference.decoder = decoders.ByteLevel()
        return self.reference

    @cached_property
    def surfaces(self) -> Surfaces | None:
        """Bytes of text behind each token, where they can be known."""
        return token_surfaces(self.content, vocab_size=self.vocab_size)

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for what the tokenizer does not know."""
        return unknown_id(self.content)

    @cached_property
    def _noted(self) -> list[tuple[np.uint32, np.uint32]]:
        """Ids of control tokens and of the unknown one, as ranges: first id and number of ids."""
        noted = np.unique([*self.control.ids.values(), *([] if self.unknown_id is None else [self.unknown_id])])
        runs = np.split(noted, np.flatnonzero(np.diff(noted) > 1) + 1) if len(noted) else []
        return [(np.uint32(run[0]), np.uint32(len(run))) for run in runs]

    def is_noted(self, ids: TokenIds) -> npt.NDArray[np.bool_] | None:
        """Which ids are those of control tokens or of the unknown one; None if none is.

        Raises:
            FastmixError: some are none of the tokenizer's.
        """
        if not len(ids):
            return None
        low, high = ids.min(), ids.max()
        if high >= self.vocab_size:
            problem = f"gives the id {int(high)}, and its vocabulary ends at {self.vocab_size - 1}"
            raise FastmixError(self.path, problem, "save the tokenizer again with all of its tokens")
        # A comparison for each range, of which there are few and most at either end: to look every id up in a table takes ten times
        # as long.
        ranges = [(first, count) for first, count in self._noted if first <= high and first + count > low]
        found = [hits for first, count in ranges if (hits := ids - first < count).any()]
        return np.logical_or.reduce(found) if found else None


def _parsed(text: str, *, where: Path) -> dict[str, Any]:
    """A `tokenizer.json` in the form that `tokenizers` writes, whatever older form it has."""
    content: dict[str, Any] = json.loads(text)
    if not {"added_tokens", "normalizer", "pre_tokenizer"} <= content.keys() or "type" not in content["model"]:
        content = json.loads(str(tokenizer_from(text, where=where).to_str()))
    return content | {"post_processor": None}


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
