"""Lightning. It saves the state of a loader that has one, and gives it back: a fit with `ckpt_path` goes on at the next batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from fastmix_data.loader import ManifestDataset, ManifestLoader
from fastmix_data.loading.transformers_inputs import transformers_inputs


class LanguageModel(L.LightningModule):
    """The loader is made here, where Lightning knows this rank."""

    def __init__(self, model: nn.Module, manifest: Path, *, num_workers: int = 0) -> None:
        """Keep what the loader is made of."""
        super().__init__()
        self.model, self.manifest, self.num_workers = model, manifest, num_workers

    def train_dataloader(self) -> ManifestLoader:
        """Lightning puts no sampler in front of it, since its dataset is iterable."""
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        dataset = ManifestDataset(self.manifest, batch_size=4, **ranks)
        return ManifestLoader(dataset, num_workers=self.num_workers, collate_fn=transformers_inputs)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """The mean over labels."""
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters())


def train(
    manifest: Path, checkpoint: Path, model: nn.Module, *, num_workers: int = 0, max_steps: int | None = None, **settings: Any
) -> None:
    """Go on from the checkpoint if there is one, to the end of the manifest or to `max_steps`; a checkpoint every 5 steps."""
    saving = ModelCheckpoint(checkpoint.parent, checkpoint.stem, every_n_train_steps=5, enable_version_counter=False)
    trainer = L.Trainer(max_epochs=1, max_steps=max_steps or -1, callbacks=[saving], **settings)
    module = LanguageModel(model, manifest, num_workers=num_workers)
    trainer.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None)
