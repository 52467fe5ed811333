"""The `.idx` beside a `.bin`: where each sequence lies in it, and how long it is."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.atomic_files import atomic_file

_MAGIC, _VERSION = b"MMIDIDX\0\0", 1
# Megatron has no unsigned 32-bit integers. The bytes of ids below 2^31 are those of signed ones.
_DTYPE_CODES = {"<u2": 8, "<u4": 4}
MAX_VOCAB_SIZE = 1 << 31


def write_index(path: Path, *, dtype: str, lengths_S: Int64s, offsets_S: Int64s) -> None:
    """Write an index in which every sequence is a document of its own.

    Args:
        dtype: of the tokens, `<u2` or `<u4`.
        lengths_S: tokens of each sequence, shape (S,).
        offsets_S: where its first byte lies in the `.bin`, shape (S,). They need not follow each other without gaps.
    """
    num_sequences = len(lengths_S)
    with atomic_file(path) as file:
        file.write(_MAGIC + struct.pack("<QBQQ", _VERSION, _DTYPE_CODES[dtype], num_sequences, num_sequences + 1))
        file.write(lengths_S.astype("<i4").tobytes())
        file.write(offsets_S.astype("<i8").tobytes())
        file.write(np.arange(num_sequences + 1, dtype="<i8").tobytes())
