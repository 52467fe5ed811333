"""Which tokens carry loss, given which characters do: texts are encoded whole, so that the border changes no token.

A token that holds a character with loss carries loss, also where it begins before the border.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Bools, Int64s, Mask
from fastmix_data.tokens.control_tokens import largest_id, vocabulary_of

Span = tuple[int, int]
Spans = Sequence[Span]
_SPACE = "▁"


@dataclass(frozen=True)
class Surfaces:
    """How many bytes of a text each token stands for.

    Attributes:
        num_bytes_V: by token id, shape (vocab_size,).
        composes: whether the tokenizer composes characters (NFC) first, after which bytes are not those of the text.
    """

    num_bytes_V: npt.NDArray[np.int32]
    composes: bool


def token_surfaces(content: Mapping[str, Any], *, vocab_size: int) -> Surfaces | None:
    """The bytes behind each token, or None for a tokenizer whose tokens, put together, need not be the text.

    Only of tokenizers that keep every byte: then equal numbers of bytes mean equal text, so positions can be counted.
    """
    model = content["model"]
    normalizers = list(_parts(content.get("normalizer"), "normalizers"))
    steps = list(_parts(content.get("pre_tokenizer"), "pretokenizers"))
    kinds = {step["type"] for step in steps}
    is_plain = all(_keeps_bytes(step) for step in [*normalizers, *steps])
    if model["type"] not in ("BPE", "Unigram") or not is_plain:
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    # A token that takes the space beside it with it could make up for the one that was put in front.
    if any(token.get("lstrip") or token.get("rstrip") for token in content["added_tokens"]):
        return None
    num_bytes_V = np.zeros(vocab_size, np.int32)
    of_bytes = "ByteLevel" in kinds
    for piece, number in vocabulary_of(model).items():
        num_bytes_V[number] = len(piece) if of_bytes else _num_bytes(piece, has_fallback=bool(model.get("byte_fallback")))
    for token in content["added_tokens"]:
        num_bytes_V[token["id"]] = len(token["content"].encode())
    return Surfaces(num_bytes_V, any(step["type"] == "NFC" for step in normalizers))


def _parts(step: Mapping[str, Any] | None, inner: str) -> Sequence[Mapping[str, Any]]:
    if step is None:
        return ()
    if step["type"] == "Sequence":
        return [part for child in step[inner] for part in _parts(child, inner)]
    return (step,)


def _keeps_bytes(step: Mapping[str, Any]) -> bool:
    kind = step["type"]
    if kind == "Replace":
        return bool(step["pattern"] == {"String": " "} and step["content"] == _SPACE)
    if kind in ("Split", "Punctuation"):
        return bool(step.get("behavior") != "Removed")
    return kind in ("NFC", "Prepend", "ByteLevel", "Metaspace", "Digits", "UnicodeScripts")


def _num_bytes(piece: str, *, has_fallback: bool) -> int:
    if has_fallback and len(piece) == 6 and piece.startswith("<0x"):
        return 1
    return len(piece.replace(_SPACE, " ").encode())


def is_lossless(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer can write any text, by its construction: it keeps every byte and has a token for each."""
    model = content["model"]
    if token_surfaces(content, vocab_size=largest_id(content) + 1) is None:
        return False
    pieces = vocabulary_of(model)
    if "ByteLevel" in {step["type"] for step in _parts(content.get("pre_tokenizer"), "pretokenizers")}:
        return model["type"] == "BPE" and all(piece in pieces for piece in byte_alphabet())
    return bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in pieces for byte in range(256))


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level tokenizers."""
    from tokenizers import pre_tokenizers

    # The library gives it in another order in every process.
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def mask_by_surfaces(
    surfaces: Surfaces, texts: Sequence[str], spans_D: Sequence[Spans], ids: npt.NDArray[np.uint32], offsets: Int64s
) -> tuple[Mask, Int64s]:
    """Loss by token, found by counting bytes.

    Returns:
        One value per id, and the texts for which the count did not come out even, whose values are zeros.
    """
    ends = np.cumsum(surfaces.num_bytes_V.take(ids), dtype=np.int64)
    edges_D = np.concatenate([np.zeros(1, np.int64), ends])[offsets]
    num_bytes_D = np.fromiter(map(len, texts), np.int64, len(texts))
    is_ascii_D = np.fromiter(map(str.isascii, texts), np.bool_, len(texts))
    for number in np.flatnonzero(~is_ascii_D).tolist():
        num_bytes_D[number] = len(texts[number].encode())
    # Some tokenizers put a space in front of the text. Whatever else makes a difference, the text is not what was encoded.
    in_front_D = np.diff(edges_D) - num_bytes_D
    is_counted_D = (in_front_D == 0) | (in_front_D == 1)
    if surfaces.composes:
        is_counted_D &= np.fromiter((unicodedata.is_normalized("NFC", text) for text in texts), np.bool_, len(texts))
    starts, stops = _edges(texts, spans_D, bases_D=edges_D[:-1] + in_front_D, is_ascii_D=is_ascii_D, is_wanted_D=is_counted_D)
    # A token begins where the one before it ends.
    first, last = np.searchsorted(ends, starts, side="right"), np.searchsorted(ends, stops, side="left") + 1
    changes = np.zeros(len(ids) + 1, np.int8)
    np.add.at(changes, first, 1)
    np.add.at(changes, np.minimum(np.maximum(first, last), len(ids)), -1)
    mask = np.cumsum(changes[:-1], dtype=np.int8) > 0
    return mask.view(np.uint8), np.flatnonzero(~is_counted_D)


def _edges(
    texts: Sequence[str], spans_D: Sequence[Spans], *, bases_D: Int64s, is_ascii_D: Bools, is_wanted_D: Bools
) -> tuple[Int64s, Int64s]:
    """Byte positions of the spans of the wanted texts, each text starting at its base."""
    num_spans_D = np.fromiter(map(len, spans_D), np.int64, len(spans_D))
    starts, stops = np.array([edge for spans in spans_D for span in spans for edge in span], np.int64).reshape(-1, 2).T
    document_S = np.repeat(np.arange(len(texts)), num_spans_D)
    for place in np.flatnonzero(~is_ascii_D[document_S]).tolist():
        text, start = texts[document_S[place]], starts[place]
        inside = len(text[start : stops[place]].encode())
        starts[place] = len(text[:start].encode())
        stops[place] = starts[place] + inside
    is_wanted_S, base_S = is_wanted_D[document_S], bases_D[document_S]
    return (starts + base_S)[is_wanted_S], (stops + base_S)[is_wanted_S]


def mask_by_offsets(offsets_T: Sequence[Span], spans: Spans) -> Mask:
    """Loss by token of one text, given the characters of each token."""
    begins, ends = np.array(offsets_T, np.int64).reshape(-1, 2).T
    mask = np.zeros(len(begins), np.bool_)
    for start, stop in spans:
        mask |= (ends > start) & (begins < stop)
    return mask.astype(np.uint8)
