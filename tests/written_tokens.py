"""Files of tokens as other tools write them, by the specifications of their formats; nothing of ours."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EOS = 256  # of the byte tokenizer
Documents = Sequence[np.ndarray]
_CODES = {"uint16": 8, "int32": 4, "int64": 5}


def documents(seed: int, count: int) -> list[np.ndarray]:
    """Of bytes, each with the end-of-text token."""
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(97, 123, size=rng.integers(5, 300)), EOS) for _ in range(count)]


def megatron(folder: Path, name: str, documents: Documents, *, dtype: str = "uint16") -> dict[str, Any]:
    sizes = np.array(list(map(len, documents)))
    np.concatenate(documents).astype(dtype).tofile(folder / f"{name}.bin")
    pointers = (np.cumsum(sizes) - sizes) * np.dtype(dtype).itemsize
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, _CODES[dtype], len(sizes), len(sizes) + 1)
    ends = np.arange(len(sizes) + 1)
    arrays = sizes.astype("<i4").tobytes() + pointers.astype("<i8").tobytes() + ends.astype("<i8").tobytes()
    (folder / f"{name}.idx").write_bytes(header + arrays)
    return {"megatron": name}


def olmo(folder: Path, name: str, documents: Documents, *, dtype: str = "uint16") -> dict[str, Any]:
    np.concatenate(documents).astype(dtype).tofile(folder / f"{name}.npy")
    ends = np.cumsum(list(map(len, documents)))
    rows = "".join(f"{end - len(document)},{end},id,src,1\n" for document, end in zip(documents, ends, strict=True))
    (folder / f"{name}.csv.gz").write_bytes(gzip.compress(rows.encode()))
    return {"olmo": f"{name}.npy", "dtype": dtype}


def datatrove(folder: Path, name: str, documents: Documents, *, loss: np.ndarray | None = None) -> dict[str, Any]:
    tokens = np.concatenate(documents).astype("<u2")
    tokens.tofile(folder / f"{name}.ds")
    np.cumsum(list(map(len, documents))).astype("<u8").tofile(folder / f"{name}.ds.index")
    (folder / f"{name}.ds.metadata").write_text(f"any|2\n{len(tokens)}\n1T")
    if loss is not None:
        np.asarray(loss).astype("?" if max(loss) <= 1 else "u1").tofile(folder / f"{name}.ds.loss")
    return {"datatrove": f"{name}.ds"}


def mds(folder: Path, name: str, documents: Documents, *, encoding: str = "ndarray:uint16") -> dict[str, Any]:
    """A sample a document, with a column of text before its tokens; two files."""
    (folder / name).mkdir()
    half, shards = len(documents) // 2, []
    for number, part in enumerate((documents[:half], documents[half:])):
        dtype = np.dtype(encoding.split(":")[1])
        samples = []
        for document in part:
            width = 1 if len(document) < 256 else 2
            array = bytes([1 << 2 | width - 1]) + len(document).to_bytes(width, "little") + document.astype(dtype).tobytes()
            text = b"some text"[: len(document) % 9]
            samples.append(struct.pack("<II", len(text), len(array)) + text + array)
        offsets = np.cumsum([0, *map(len, samples)]) + 4 * (len(samples) + 2)
        content = struct.pack("<I", len(samples)) + offsets.astype("<u4").tobytes() + b"".join(samples)
        path = folder / name / f"shard.{number:05d}.mds"
        path.write_bytes(content)
        columns = {"column_names": ["a", "tokens"], "column_encodings": ["str", encoding], "column_sizes": [None, None]}
        data = {"raw_data": {"basename": path.name, "bytes": len(content), "hashes": {}}, "zip_data": None, "compression": None}
        shards.append({**columns, **data, "format": "mds", "version": 2, "samples": len(samples), "hashes": []})
    (folder / name / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return {"mds": name}


FORMATS: Mapping[str, Callable[..., dict[str, Any]]] = {"megatron": megatron, "olmo": olmo, "datatrove": datatrove, "mds": mds}
