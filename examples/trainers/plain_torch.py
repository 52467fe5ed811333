"""A training loop of one's own: batches of this rank, workers, tokens and loss of each source, and a state that resumes on any number
of ranks. On many ranks wrap the model as usual; the loader needs no sampler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastmix_data.loader import ManifestDataset, ManifestLoader
from fastmix_data.loading.source_meter import Sink, SourceMeter


def train(
    manifest: Path,
    checkpoint: Path,
    model: nn.Module,
    *,
    num_workers: int = 0,
    max_steps: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    sink: Sink | None = None,
    **options: Any,
) -> None:
    """Go on from the checkpoint if there is one, to the end of the manifest or to `max_steps`."""
    dataset = ManifestDataset(manifest, rank=rank, world_size=world_size, batch_size=4, **options)
    loader = ManifestLoader(dataset, num_workers=num_workers)
    meter = SourceMeter(dataset)
    optimizer = torch.optim.AdamW(model.parameters())
    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        meter.load_state_dict(saved["meter"])
        step = saved["step"]
    for batch in loader:
        logits_BTV = model(input_ids=batch["tokens"], position_ids=batch["positions"]).logits
        losses = F.cross_entropy(logits_BTV.flatten(0, 1), batch["labels"].flatten(), reduction="none")
        (losses.sum() / (batch["labels"] != -100).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        meter.update(batch, losses)
        step += 1
        if step % 10 == 0:
            meter.log(step, sink)
        if step == max_steps:
            break
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "meter": meter.state_dict()}
    if rank == 0:
        torch.save({**states, "loader": loader.state_dict(), "step": step}, checkpoint)
