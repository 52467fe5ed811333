"""What litdata makes of an export through its mixture.py, and its own writer of the same tokens: export's folder, block sizes."""

import json
import sys
import tempfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import numpy as np
from litdata import StreamingDataLoader
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.writer import BinaryWriter


def windows(dataset: Iterable) -> list[list[int]]:
    return [window.tolist() for window in dataset]


def loaded(dataset: Iterable) -> list[list[int]]:
    """Windows in batches from two worker processes."""
    return [window.tolist() for batch in StreamingDataLoader(dataset, batch_size=3, num_workers=2) for window in batch]


def is_as_written_by_litdata(pool: Path) -> bool:
    """Whether litdata makes the same files of a pool's tokens."""
    index = json.loads((pool / "index.json").read_text())
    dtype = {"no_header_numpy:5": np.uint16, "no_header_numpy:6": np.uint32}[index["config"]["data_format"][0]]
    with tempfile.TemporaryDirectory() as out:
        writer = BinaryWriter(out, chunk_bytes=1, item_loader=TokensLoader())
        for number, chunk in enumerate(index["chunks"]):
            writer.add_item(number, np.fromfile(pool / chunk["filename"], dtype, offset=12))
        writer.done()
        writer.merge()
        made = json.loads((Path(out) / "index.json").read_text())
        made["config"]["chunk_bytes"], made["updated_at"] = index["config"]["chunk_bytes"], index["updated_at"]
        names = [chunk["filename"] for chunk in index["chunks"]]
        return made == index and all((Path(out) / name).read_bytes() == (pool / name).read_bytes() for name in names)


if __name__ == "__main__":
    folder, block_sizes = Path(sys.argv[1]), [int(size) for size in sys.argv[2:]]
    sys.path.append(str(folder))
    mixture = import_module("mixture")  # as a training script would import it
    answer = {
        "exact": {size: windows(mixture.exact(size)) for size in block_sizes},
        "loaded": {size: loaded(mixture.exact(size)) for size in block_sizes[:1]},
        "weighted": {size: windows(mixture.weighted(size)) for size in block_sizes},
        "as_written": {name: is_as_written_by_litdata(folder / name) for name, _, _ in mixture.POOLS},
    }
    print(json.dumps(answer))
