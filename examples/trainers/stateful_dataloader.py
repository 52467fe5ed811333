"""torchdata's StatefulDataLoader. Its state resumes with the same number of ranks and workers; `ManifestLoader`'s with any."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from fastmix_data.loader import ManifestDataset
from fastmix_data.loading.transformers_inputs import transformers_inputs


def train(manifest: Path, checkpoint: Path, model: nn.Module, *, num_workers: int = 0, max_steps: int | None = None) -> None:
    """Go on from the checkpoint if there is one, to the end of the manifest or for `max_steps`."""
    dataset = ManifestDataset(manifest, batch_size=4)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers, collate_fn=transformers_inputs)
    optimizer = torch.optim.AdamW(model.parameters())
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    for step, batch in enumerate(loader, start=1):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == max_steps:
            break
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
    torch.save(states, checkpoint)
