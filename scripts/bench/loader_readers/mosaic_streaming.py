"""MosaicML's StreamingDataset, shuffled, a window of the flat file per sample, as llm-foundry reads it. Run by its own environment."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch
from passes import serve

# The package's own start imports torchvision for its data sets of pictures, which loads only beside the build of torch it was made for.
_SPEC = importlib.util.find_spec("streaming")
_PACKAGE = types.ModuleType("streaming")
_PACKAGE.__path__ = list(_SPEC.submodule_search_locations)
sys.modules["streaming"] = _PACKAGE

from streaming.base import MDSWriter, StreamingDataset  # noqa: E402

root, length, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder = root / f"mds-{length}"


class Windows(StreamingDataset):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens_S = torch.from_numpy(super().__getitem__(index)["tokens"].astype(np.int64))
        return tokens_S[:-1], tokens_S[1:]


def write() -> None:
    flat = np.fromfile(root / "flat.bin", np.uint16)
    with MDSWriter(columns={"tokens": f"ndarray:uint16:{length + 1}"}, out=str(folder), size_limit=16 << 20) as writer:
        for start in range(0, len(flat) - length, length):
            writer.write({"tokens": flat[start : start + length + 1]})


def read_pass() -> int:
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch)
    return sum(tokens_BT.numel() for tokens_BT, _ in loader)


write()
dataset = Windows(local=str(folder), shuffle=True, batch_size=batch)
serve(read_pass)
