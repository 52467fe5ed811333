"""From documents to tokens, in flat arrays: no Python object per token anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastmix_data.arrays import Int64s, Mask, Tokens
from fastmix_data.errors import FastmixError
from fastmix_data.tokens.encoder import Encoder, Offsets, TokenIds
from fastmix_data.tokens.loss_borders import Spans, mask_by_offsets, mask_by_surfaces


@dataclass(frozen=True)
class Texts:
    """Texts to encode, one a document.

    Attributes:
        texts: shape (num_documents,).
        loss_spans: the characters of each that carry loss; None where all do.
        private: documents in which control tokens have their private names (see `control_tokens.py`), ascending.
    """

    texts: list[str]
    loss_spans: list[Spans] | None = None
    private: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents as one run of tokens, an end-of-text token after each.

    Attributes:
        tokens: all tokens, in the shards' dtype.
        ends_D: past-the-last position of each document, its end-of-text token included, shape (num_documents,).
        num_prompt_tokens_D: tokens of each document before the first that carries loss.
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


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as ids, nothing put around them.

    Attributes:
        ids, offsets: as `Encoder.encode_flat` gives them.
        private: documents that were encoded with private names of control tokens.
        num_spelled_D: how often a document spells a control token in its text, shape (num_documents,).
        num_unknown_D: tokens that stand for what the tokenizer does not know, shape (num_documents,).
    """

    ids: TokenIds
    offsets: Offsets
    private: list[int]
    num_spelled_D: Int64s
    num_unknown_D: Int64s


def encode_texts(encoder: Encoder, texts: Texts, *, spelled_is_text: bool) -> EncodedTexts:
    """Encode texts whole.

    Args:
        spelled_is_text: whether a control token that a text spells becomes ordinary text; a private name always is the token.
    Raises:
        FastmixError: ids are not those of the tokenizer, or ordinary text becomes a control token whatever is done.
    """
    ids, offsets = _encode_parts(encoder, texts.texts, texts.private)
    num_noted_D = _count_noted(encoder, ids, offsets)
    num_spelled_D = np.zeros(len(texts.texts), np.int64)
    private = list(texts.private)
    if num_noted_D is not None:
        # Only here does anything cost time: few documents spell a control token.
        known = set(texts.private)
        candidates = [number for number in np.flatnonzero(num_noted_D).tolist() if number not in known]
        for number in candidates:
            num_spelled_D[number] = sum(1 for _ in encoder.control.pattern.finditer(texts.texts[number]))
        spelled = [number for number in candidates if num_spelled_D[number]]
        if spelled and spelled_is_text:
            private = sorted({*private, *spelled})
            ids, offsets = _replace(ids, offsets, spelled, encoder.encode_private([texts.texts[number] for number in spelled]))
    return EncodedTexts(ids, offsets, private, num_spelled_D, _count_unknown(encoder, ids, offsets, num_noted_D is not None))


def _encode_parts(encoder: Encoder, texts: list[str], private: Sequence[int]) -> tuple[TokenIds, Offsets]:
    if not private:
        return encoder.encode_flat(texts)
    chosen = set(private)
    # Their own encoding is put in below; an empty text takes no time.
    ids, offsets = encoder.encode_flat(["" if number in chosen else text for number, text in enumerate(texts)])
    return _replace(ids, offsets, private, encoder.encode_private([texts[number] for number in private]))


def _replace(ids: TokenIds, offsets: Offsets, chosen: Sequence[int], other: tuple[TokenIds, Offsets]) -> tuple[TokenIds, Offsets]:
    """Put other ids in the place of some texts'."""
    parts = np.split(ids, offsets[1:-1])
    for number, part in zip(chosen, np.split(other[0], other[1][1:-1]), strict=True):
        parts[number] = part
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return np.concatenate(parts), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _sum_by_text(values: npt.NDArray[np.bool_], offsets: Offsets) -> Int64s:
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    num_D: Int64s = sums[offsets[1:]] - sums[offsets[:-1]]
    return num_D


def _count_noted(encoder: Encoder, ids: TokenIds, offsets: Offsets) -> Int64s | None:
    is_noted = encoder.is_noted(ids)
    return None if is_noted is None else _sum_by_text(is_noted, offsets)


def _count_unknown(encoder: Encoder, ids: TokenIds, offsets: Offsets, may_have: bool) -> Int64s:
    if encoder.unknown_id is None or not may_have:
        return np.zeros(len(offsets) - 1, np.int64)
    return _sum_by_text(ids == encoder.unknown_id, offsets)


def encode_documents(
    encoder: Encoder,
    texts: Texts,
    *,
    eos_id: int,
    dtype: np.dtype[np.unsignedinteger],
    bos_ids: Sequence[int] = (),
    encoded: EncodedTexts | None = None,
) -> EncodedDocuments:
    """Encode documents, each with its start and its end.

    A start or an end that a text has already, because a chat template wrote it, is not written again. Every text is encoded whole: a
    prompt and a completion apart would be cut, and spaced, as no other program cuts them.

    Args:
        bos_ids: tokens to begin every document with; they carry no loss where anything does not.
        encoded: of `encode_texts`; made here when not given, with spelled control tokens as text.
    """
    if encoded is None:
        encoded = encode_texts(encoder, texts, spelled_is_text=True)
    mask = None if texts.loss_spans is None else _loss_mask(encoder, texts, encoded)
    return _with_edges(encoded.ids, encoded.offsets, mask, eos_id=eos_id, bos_ids=bos_ids, dtype=dtype)


def _loss_mask(encoder: Encoder, texts: Texts, encoded: EncodedTexts) -> Mask:
    spans_D = texts.loss_spans
    assert spans_D is not None
    ids, offsets = encoded.ids, encoded.offsets
    mask, uncounted = np.zeros(len(ids), np.uint8), np.arange(len(texts.texts))
    if encoder.surfaces is not None:
        mask, uncounted = mask_by_surfaces(encoder.surfaces, texts.texts, spans_D, ids, offsets)
    private = set(encoded.private)
    for chosen, are_private in (([n for n in uncounted.tolist() if n not in private], False), (sorted(private), True)):
        offsets_of_texts = encoder.offsets_of([texts.texts[number] for number in chosen], are_private=are_private)
        for number, offsets_T in zip(chosen, offsets_of_texts, strict=True):
            here = slice(offsets[number], offsets[number + 1])
            if len(offsets_T) != here.stop - here.start:
                problem = f"gives {here.stop - here.start} tokens with {encoder.backend}, {len(offsets_T)} with tokenizers"
                raise FastmixError(f"{encoder.path}, text beginning {texts.texts[number][:40]!r}", problem)
            mask[here] = mask_by_offsets(offsets_T, spans_D[number])
    return mask


def _with_edges(
    ids: TokenIds,
    offsets: Offsets,
    mask: Mask | None,
    *,
    eos_id: int,
    bos_ids: Sequence[int],
    dtype: np.dtype[np.unsignedinteger],
) -> EncodedDocuments:
    """Put the start in front of each text and the end-of-text token after it, except where it is there."""
    num_documents = len(offsets) - 1
    starts_D, stops_D = offsets[:-1], offsets[1:]
    lengths_D = stops_D - starts_D
    has_text_D = lengths_D > 0
    ends_itself_D = np.zeros(num_documents, np.bool_)
    ends_itself_D[has_text_D] = ids[stops_D[has_text_D] - 1] == eos_id
    num_front_D = np.full(num_documents, len(bos_ids))
    if bos_ids:
        num_front_D[has_text_D] *= ids[starts_D[has_text_D]] != bos_ids[0]
    ends_D = np.cumsum(num_front_D + lengths_D + ~ends_itself_D)
    tokens = np.empty(ends_D[-1] if num_documents else 0, dtype)
    is_text = np.ones(len(tokens), np.bool_)
    starts_of_text_D = ends_D - ~ends_itself_D - lengths_D
    for number, token in enumerate(bos_ids):
        at = (starts_of_text_D - len(bos_ids) + number)[num_front_D > 0]
        is_text[at], tokens[at] = False, token
    added_ends = ends_D[~ends_itself_D] - 1
    is_text[added_ends] = False
    tokens[is_text] = ids
    tokens[ends_D - 1] = eos_id
    if mask is None:
        return EncodedDocuments(tokens, ends_D, np.zeros(num_documents, np.int64), None)
    loss_mask = np.zeros(len(tokens), np.uint8)
    loss_mask[is_text] = mask
    # The end is to be learned where what it ends is: after a completion, not after a turn of the user.
    last_D = np.ones(num_documents, np.uint8)
    last_D[has_text_D] = mask[stops_D[has_text_D] - 1]
    loss_mask[added_ends] = last_D[~ends_itself_D]
    return EncodedDocuments(tokens, ends_D, _num_before_loss(loss_mask, ends_D), loss_mask)


def _num_before_loss(loss_mask: Mask, ends_D: Offsets) -> Offsets:
    """Tokens of each document before its first with loss; all of them where none has any."""
    starts_D = np.concatenate([np.zeros(1, np.int64), ends_D[:-1]])[: len(ends_D)]
    with_loss = np.append(np.flatnonzero(loss_mask), len(loss_mask))
    first_D = with_loss[np.searchsorted(with_loss, starts_D)]
    num_D: Offsets = np.minimum(first_D, ends_D) - starts_D
    return num_D
