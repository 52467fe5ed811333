"""A flat file of tokens under np.memmap, random windows as nanoGPT's `get_batch` takes them: int64 tokens and labels, no bookkeeping.

With a fourth argument a window is copied once and widened with its batch, which is the least that NumPy can do.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from passes import serve

root, length, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = np.memmap(root / "flat.bin", np.uint16, "r")
rng = np.random.default_rng(0)


def nanogpt_batch(starts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.stack([torch.from_numpy(data[start : start + length].astype(np.int64)) for start in starts])
    y = torch.stack([torch.from_numpy(data[start + 1 : start + 1 + length].astype(np.int64)) for start in starts])
    return x, y


def least_batch(starts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    windows_BS = np.empty((len(starts), length + 1), np.uint16)
    for row, start in enumerate(starts):
        windows_BS[row] = data[start : start + length + 1]
    return torch.from_numpy(windows_BS[:, :-1].astype(np.int64)), torch.from_numpy(windows_BS[:, 1:].astype(np.int64))


def read_pass() -> int:
    make = least_batch if len(sys.argv) > 4 else nanogpt_batch
    num_batches = len(data) // (length * batch)
    return sum(make(rng.integers(0, len(data) - length, batch).tolist())[0].numel() for _ in range(num_batches))


serve(read_pass)
