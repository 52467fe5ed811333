"""litdata's StreamingDataset with its TokensLoader, shuffled; its chunks are the flat file's tokens. Run by litdata's own environment."""

import sys
from pathlib import Path

import numpy as np
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.writer import BinaryWriter
from passes import serve

root, length, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder = root / "litdata"


def write() -> None:
    flat = np.fromfile(root / "flat.bin", np.uint16)
    size = (8 << 20) // length * length  # 16 MiB, of whole windows
    writer = BinaryWriter(str(folder), chunk_bytes=2 * size + 4096, item_loader=TokensLoader())
    for number, start in enumerate(range(0, len(flat), size)):
        writer.add_item(number, flat[start : start + size])
    writer.done()
    writer.merge()


def read_pass() -> int:
    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=length + 1), shuffle=True)
    num_tokens = 0
    for windows_BS in StreamingDataLoader(dataset, batch_size=batch):
        tokens_BT, _labels_BT = windows_BS[:, :-1].long(), windows_BS[:, 1:].long()
        num_tokens += tokens_BT.numel()
    return num_tokens


write()
serve(read_pass)
