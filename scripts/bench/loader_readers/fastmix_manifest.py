"""ManifestDataset: shuffled batches of int64 tokens and labels, positions and sources."""

import sys
from pathlib import Path

from passes import serve

from fastmix_data.loader import ManifestDataset

root, length, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
options = {"read_ahead": int(sys.argv[4])} if len(sys.argv) > 4 else {}
dataset = ManifestDataset(root / "manifest", sequence_length=length, batch_size=batch, **options)


def read_pass() -> int:
    return sum(item["tokens"].numel() for item in dataset)


serve(read_pass)
