"""Which documents are held out for validation, and in which order the work is done so that none of them is trained on anywhere."""

from __future__ import annotations

import base64

import numpy as np
import pyarrow as pa
import xxhash

from fastmix_data.arrays import Bools, UInt64s
from fastmix_data.arrow_arrays import cells_of
from fastmix_data.atomic_files import hash_of


def is_held_out(hashes: UInt64s, valid_fraction: float) -> Bools:
    """The rule by which documents of sources without valid_files are held out; the same for every source.

    By the text's hash and nothing else: copies of a document are on the same side, whatever source or partition they are in.
    """
    return hashes < np.uint64(int(valid_fraction * 2.0**64))


def hash_documents(batch: pa.RecordBatch) -> UInt64s:
    """XXH3-64 of each document's text; of prompt, newline and completion of a pair, of a conversation's JSON text.

    The recipe's separator is left out of it, so that equal pairs are equal documents in whatever source.
    """
    whole = next((name for name in ("text", "messages") if name in batch.schema.names), None)
    if whole is not None:
        return np.fromiter(map(xxhash.xxh3_64_intdigest, cells_of(batch.column(whole))), np.uint64, batch.num_rows)
    pairs = zip(cells_of(batch.column("prompt")), cells_of(batch.column("completion")), strict=True)
    digests = (xxhash.xxh3_64_intdigest(b"\n".join(pair)) for pair in pairs)
    return np.fromiter(digests, np.uint64, batch.num_rows)


def encode_hashes(hashes: UInt64s) -> str:
    """Sorted hashes in the form of `Receipt.valid_hashes`: text, of the same bytes on every machine."""
    return base64.b64encode(hashes.astype("<u8").tobytes()).decode()


def hash_of_held_out(hashes: UInt64s) -> str:
    """Hash of a set of held-out documents, given sorted."""
    return hash_of([f"{len(hashes)}", encode_hashes(hashes)])
