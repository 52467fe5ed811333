"""webdataset and its WebLoader over fastmix's shards, whose samples are whole blocks: shuffled in a buffer, int64 batches."""

import sys
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from passes import serve

root, length, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
urls = sorted(str(path) for path in root.glob("shards/*/*.tar"))


def tokens_and_labels(sample: tuple[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens_S = torch.from_numpy(sample[0].astype(np.int64))
    assert len(tokens_S) == length + 1
    return tokens_S[:-1], tokens_S[1:]


def read_pass() -> int:
    dataset = wds.WebDataset(urls, shardshuffle=100).shuffle(1000).decode().to_tuple("tokens.npy").map(tokens_and_labels)
    loader = wds.WebLoader(dataset.batched(batch, collation_fn=torch.utils.data.default_collate), batch_size=None)
    return sum(tokens_BT.numel() for tokens_BT, _ in loader)


serve(read_pass)
