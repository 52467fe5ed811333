"""Arrow arrays straight from buffers.

`pa.array` and `to_numpy` import pandas the first time one is called, a quarter of a second in every worker; these do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastmix_data.arrays import Int64s


def strings(texts: Sequence[str]) -> pa.LargeStringArray:
    """A column of text; none of it null.

    >>> strings(["a", "bc"]).to_pylist()
    ['a', 'bc']
    """
    encoded = [text.encode() for text in texts]
    # 64-bit offsets: a batch may hold one document of more than 2 GiB.
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    return pa.LargeStringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """A column of numbers, without a copy.

    >>> numbers(np.arange(3, dtype=np.int32)).to_pylist()
    [0, 1, 2]
    """
    contiguous = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(contiguous.dtype), len(contiguous), [None, pa.py_buffer(contiguous)])


def values_of(array: pa.Array) -> npt.NDArray[Any]:
    """The values of a column of numbers or truth values without nulls; numbers without a copy.

    >>> values_of(numbers(np.arange(3))[1:]).tolist(), values_of(booleans(np.array([True, False]))).tolist()
    ([1, 2], [True, False])
    """
    truth = pa.types.is_boolean(array.type)
    plain = array.cast(pa.uint8()) if truth else array
    dtype = np.dtype(plain.type.to_pandas_dtype())
    if not len(plain):
        return np.zeros(0, np.bool_ if truth else dtype)
    found = np.frombuffer(plain.buffers()[1], dtype, len(plain), plain.offset * dtype.itemsize)
    return found.view(np.bool_) if truth else found


def booleans(values: npt.NDArray[np.bool_]) -> pa.BooleanArray:
    """A column of truth values, packed into bits.

    >>> booleans(np.array([True, False])).to_pylist()
    [True, False]
    """
    # Arrow's first value is the lowest bit, numpy's the highest unless told.
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))])


def one_batch(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Rows of some batches, at least one, as a single batch; each numbers its labels anew.

    >>> parts = [pa.RecordBatch.from_arrays([labels([name], np.zeros(1, np.int32))], names=["file"]) for name in "ab"]
    >>> one_batch(parts).column("file").to_pylist()
    ['a', 'b']
    """
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()[0]


def labels(values: Sequence[str], indices_N: npt.NDArray[np.integer[Any]]) -> pa.DictionaryArray:
    """A column of few different texts, given by their numbers.

    >>> labels(["a", "b"], np.array([1, 1, 0])).to_pylist()
    ['b', 'b', 'a']
    """
    return pa.DictionaryArray.from_arrays(numbers(indices_N.astype(np.int32)), strings(values))


def constant(value: str, length: int) -> pa.DictionaryArray:
    """The same text in every row.

    >>> constant("a", 2).to_pylist()
    ['a', 'a']
    """
    return labels([value], np.zeros(length, np.int32))


def offsets_of(column: pa.Array) -> Int64s:
    """Where each cell of a text column starts in its buffer, and the end of the last, shape (num_rows + 1,)."""
    return np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]


def cells_of(column: pa.Array) -> list[memoryview]:
    """UTF-8 of each cell, without a copy."""
    data = column.buffers()[2]
    view = memoryview(data if data is not None else b"")  # no buffer where all cells are empty
    return [view[start:stop] for start, stop in itertools.pairwise(offsets_of(column).tolist())]
