"""DeepSpeed's engine, started by its launcher or by torchrun. The loader's state travels as `client_state`; `training_data` stays empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist
from torch import nn

from fastmix_data.loader import ManifestDataset, ManifestLoader
from fastmix_data.loading.transformers_inputs import transformers_inputs


def train(
    manifest: Path,
    folder: Path,
    model: nn.Module,
    *,
    config: dict[str, Any],
    num_workers: int = 0,
    max_steps: int | None = None,
) -> None:
    """Go on from the checkpoint in `folder` if there is one, to the end of the manifest or for `max_steps`."""
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    batch_size = engine.train_micro_batch_size_per_gpu()
    dataset = ManifestDataset(manifest, batch_size=batch_size, rank=dist.get_rank(), world_size=dist.get_world_size())
    loader = ManifestLoader(dataset, num_workers=num_workers, collate_fn=transformers_inputs)
    path, state = engine.load_checkpoint(str(folder)) if folder.exists() else (None, {})
    if path is not None:
        loader.load_state_dict(state["loader"])
    for step, batch in enumerate(loader, start=1):
        inputs = {name: values.to(engine.device, non_blocking=True) for name, values in batch.items()}
        engine.backward(engine(**inputs).loss)
        engine.step()
        if step == max_steps:
            break
    engine.save_checkpoint(str(folder), client_state={"loader": loader.state_dict()})
