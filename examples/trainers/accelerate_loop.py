"""Accelerate. `prepare` leaves a `ManifestLoader` alone, which reads its own rank's items; `save_state` and `load_state` know it."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from fastmix_data.loader import ManifestDataset, ManifestLoader
from fastmix_data.loading.transformers_inputs import transformers_inputs


def train(manifest: Path, checkpoint: Path, model: nn.Module, *, num_workers: int = 0, max_steps: int | None = None) -> None:
    """Go on from the checkpoint if there is one, to the end of the manifest or for `max_steps`."""
    accelerator = Accelerator()
    dataset = ManifestDataset(manifest, batch_size=4, rank=accelerator.process_index, world_size=accelerator.num_processes)
    loader = ManifestLoader(dataset, num_workers=num_workers, collate_fn=transformers_inputs)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), loader)
    if checkpoint.exists():
        accelerator.load_state(checkpoint)
    for step, batch in enumerate(loader, start=1):
        inputs = {name: values.to(accelerator.device, non_blocking=True) for name, values in batch.items()}
        accelerator.backward(model(**inputs).loss)
        optimizer.step()
        optimizer.zero_grad()
        if step == max_steps:
            break
    accelerator.save_state(checkpoint)
