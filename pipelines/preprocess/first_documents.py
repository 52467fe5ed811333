"""What a source's first documents tell before the work starts: which library can encode it, and what its tokenizer loses."""

from __future__ import annotations

import pyarrow as pa

from fastmix_data.tokens.encoder import Backend, Encoder, first_difference
from fastmix_data.tokens.fidelity import Example, Fidelity, LossCount
from pipelines.inputs.files import SourceInputs
from pipelines.inputs.partitions import Partition
from pipelines.preprocess.encode_batch import EncodingPlan
from pipelines.preprocess.plan import FIRST_READ_BYTES
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.readers import read_partition
from pipelines.rendering.rendering import render_documents

_CHECKED_DOCUMENTS = 16
_CHECKED_CHARACTERS = 16_384


def check_first_documents(
    source: SourceInputs, partition: Partition, encoding: EncodingPlan, *, reference: Encoder, fast: Encoder | None
) -> tuple[Backend, list[str]]:
    """Encode a source's first documents with both libraries, and decode them again.

    Per source: where the libraries differ, it is in how they treat some script or white space, which other sources may not have.

    Args:
        fast: None where fastokens cannot read the tokenizer.
    Returns:
        The library to encode the source with, and warnings.
    Raises:
        InputError: the tokenizer loses too much of them.
    """
    batch = next(read_partition(partition, source.section, DocumentCounts(), batch_bytes=FIRST_READ_BYTES), None)
    if batch is None:
        return "tokenizers" if fast is None else "fastokens", []
    first = batch.slice(0, _CHECKED_DOCUMENTS)
    rendered = render_documents(first, encoding.rendering, reference.control)
    texts = [text[:_CHECKED_CHARACTERS] for text in rendered.texts.texts]
    places = [f"{row['file']}, {row['locator']}" for row in _rows(first, rendered.kept)]
    # Private names of control tokens are nothing that a tokenizer is to know.
    public = [number for number in range(len(texts)) if number not in rendered.texts.private]
    warnings = _what_is_lost([texts[number] for number in public], [places[number] for number in public], encoding, reference)
    if fast is None:
        return "tokenizers", warnings
    difference = first_difference(reference, fast, texts)
    if difference is None:
        return "fastokens", warnings
    return "tokenizers", [
        *warnings,
        f"{source.where}: encoded with the slower `tokenizers` because fastokens differs from it in {places[difference.text]}, token "
        f"{difference.position}: id {difference.other_id} instead of {difference.reference_id}",
    ]


def _rows(batch: pa.RecordBatch, kept: list[int]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = batch.select(["file", "locator"]).to_pylist()
    return [rows[number] for number in kept]


def _what_is_lost(texts: list[str], places: list[str], encoding: EncodingPlan, reference: Encoder) -> list[str]:
    fidelity, lost = Fidelity(reference), LossCount()
    if fidelity.is_lossless:
        return []
    changed: Example | None = None
    for text, place in zip(texts, places, strict=True):
        loss = fidelity.look(text)
        lost.add(loss, place=place, text=text)
        if loss.is_changed and changed is None:
            changed = Example(place, text, loss.decoded)
    lost.require_below(encoding.max_unknown_fraction, where=encoding.where)
    if changed is None:
        return []
    return [f"{encoding.where}: the tokenizer changes letters, as their case or accents; {changed}"]
