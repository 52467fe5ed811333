"""A batch of documents to tokens: written out as texts, encoded, and watched for what the tokenizer does to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from fastmix_data.arrays import Int64s
from fastmix_data.errors import InputError
from fastmix_data.shards.shard_format import token_dtype
from fastmix_data.tokens.encoder import Backend, Encoder
from fastmix_data.tokens.encoding import EncodedDocuments, EncodedTexts, encode_documents, encode_texts
from fastmix_data.tokens.fidelity import Fidelity, LossCount, excerpts
from fastmix_data.tokens.tokenizer import TokenizerInfo
from pipelines.reading.bad_records import BadRecord, BadRecords
from pipelines.reading.bad_text import DocumentCounts
from pipelines.rendering.rendering import RenderedDocuments, Rendering, render_documents

# Of every batch, about a mebibyte of text; of the first, more: enough for a source to be judged, at a hundredth of the time of
# encoding it.
_PARTS_LOOKED_AT, _PARTS_OF_THE_FIRST = 4, 64
_CHARACTERS_OF_A_PART = 128


@dataclass(frozen=True)
class EncodingPlan:
    """How the documents of one source become tokens.

    Attributes:
        where: the source's key in the recipe, for errors.
        max_unknown_fraction: share of characters that the tokenizer may lose.
    """

    where: str
    tokenizer: TokenizerInfo
    backend: Backend
    rendering: Rendering
    max_unknown_fraction: float

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """How tokens are stored."""
        return token_dtype(self.tokenizer.vocab_size)


@dataclass(frozen=True)
class EncodedBatch:
    """Tokens of a batch, and the rows they are of, shape (num_documents,)."""

    documents: EncodedDocuments
    rows: Int64s


# A worker does many partitions, and to read a tokenizer takes as long as to encode a small one.
@lru_cache(maxsize=4)
def _tools(tokenizer: TokenizerInfo, backend: Backend) -> tuple[Encoder, Fidelity]:
    # By the whole description, of which the hash is part: a tokenizer replaced under the same path is read again.
    encoder = Encoder(tokenizer.path, backend=backend, control=tokenizer.edges)
    return encoder, Fidelity(encoder)


def encode_batch(
    batch: pa.RecordBatch, plan: EncodingPlan, *, counts: DocumentCounts, lost: LossCount, bad_records: BadRecords
) -> EncodedBatch:
    """Encode the documents of a batch.

    Args:
        counts, lost: what happens to the documents is added to them.
        bad_records: what to do with conversations that the chat template does not take.
    Raises:
        InputError: a document spells a control token and must not, or too much of the text so far is lost.
    """
    encoder, fidelity = _tools(plan.tokenizer, plan.backend)
    rendered = render_documents(batch, plan.rendering, encoder.control)
    for row, problem in rendered.refused:
        _leave_out(batch, row, problem, counts=counts, bad_records=bad_records)
    is_chat = plan.rendering.template is not None
    # What stands in a conversation's text as a control token, the template has written.
    encoded = encode_texts(encoder, rendered.texts, spelled_is_text=plan.rendering.special_tokens != "token" and not is_chat)
    _count_spelled(batch, rendered, encoded, encoder, plan, counts)
    counts.num_unknown_tokens += int(encoded.num_unknown_D.sum())
    if not fidelity.is_lossless:
        _look(batch, rendered, fidelity, counts, lost)
        lost.require_below(plan.max_unknown_fraction, where=plan.where)
    documents = encode_documents(
        encoder,
        rendered.texts,
        eos_id=plan.tokenizer.eos_id,
        bos_ids=plan.tokenizer.bos_ids,
        dtype=plan.dtype,
        encoded=encoded,
    )
    return EncodedBatch(documents, np.array(rendered.kept, np.int64))


def _place(batch: pa.RecordBatch, row: int) -> tuple[str, str]:
    return batch.column("file")[row].as_py(), batch.column("locator")[row].as_py()


def _leave_out(batch: pa.RecordBatch, row: int, problem: str, *, counts: DocumentCounts, bad_records: BadRecords) -> None:
    file, locator = _place(batch, row)
    error = BadRecord(problem, "fix or remove it, or give another chat_template")
    raw = partial(str.encode, batch.column("messages")[row].as_py())
    bad_records.leave_out(error, file=file, locator=locator, place=lambda: f"{file}: {locator}", raw=raw)
    counts.num_bad_records += 1


def _count_spelled(
    batch: pa.RecordBatch,
    rendered: RenderedDocuments,
    encoded: EncodedTexts,
    encoder: Encoder,
    plan: EncodingPlan,
    counts: DocumentCounts,
) -> None:
    num_spelled_D = encoded.num_spelled_D if plan.rendering.template is None else np.array(rendered.num_spelled, np.int64)
    num_spelled = int(num_spelled_D.sum())
    if not num_spelled:
        return
    if plan.rendering.special_tokens == "refuse":
        number = int(np.flatnonzero(num_spelled_D)[0])
        row = rendered.kept[number]
        texts = [batch.column(name)[row].as_py() for name in batch.schema.names if name not in ("file", "locator")]
        name = next((name for name in encoder.control.names if any(name in text for text in texts)), "a control token")
        where = "{}: {}".format(*_place(batch, row))
        remedy = "remove it, or set special_tokens: text to keep it as ordinary text"
        raise InputError(where, f"spells {name!r}, a control token of the tokenizer", remedy)
    if plan.rendering.special_tokens == "token":
        counts.num_spelled_tokens += num_spelled
    else:
        counts.num_spelled_as_text += num_spelled


def _look(
    batch: pa.RecordBatch,
    rendered: RenderedDocuments,
    fidelity: Fidelity,
    counts: DocumentCounts,
    lost: LossCount,
) -> None:
    count = _PARTS_LOOKED_AT if lost.num_characters else _PARTS_OF_THE_FIRST
    for number, part in excerpts(rendered.texts.texts, count=count, length=_CHARACTERS_OF_A_PART):
        if number in rendered.texts.private:
            continue  # holds names that no tokenizer is to spell
        loss = fidelity.look(part)
        lost.add(loss, place="{}, {}".format(*_place(batch, rendered.kept[number])), text=part)
        counts.num_checked_characters += loss.num_characters
        counts.num_lost_characters += loss.num_lost
