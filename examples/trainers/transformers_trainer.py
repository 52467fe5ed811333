"""`transformers.Trainer`. Left to itself it has rank 0 read for all ranks, and on resume reads again all that was read. With a loader
given to it, each rank reads its own and resumes at the next batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastmix_data.loader import ManifestDataset, ManifestLoader
from fastmix_data.loading.transformers_inputs import transformers_inputs


class SaveLoader(TrainerCallback):
    """Puts the loader's state into each checkpoint."""

    def __init__(self, loader: ManifestLoader) -> None:
        """Keep the loader."""
        self.loader = loader

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        """The Trainer has made the folder."""
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "loader.json"
            path.write_text(json.dumps(self.loader.state_dict()))


class ManifestTrainer(Trainer):
    """A Trainer over a manifest; its arguments need `ignore_data_skip=True`, since the loader itself goes on where it was."""

    def __init__(self, *, loader: ManifestLoader, **settings: Any) -> None:
        """Everything else is the Trainer's."""
        assert settings["args"].ignore_data_skip
        super().__init__(train_dataset=loader.dataset, callbacks=[SaveLoader(loader)], **settings)
        self.loader = loader

    def get_train_dataloader(self) -> ManifestLoader:
        """Not prepared by Accelerate: the Trainer moves its batches to the device."""
        return self.loader


def train(manifest: Path, folder: Path, model: nn.Module, *, num_workers: int = 0, max_steps: int | None = None) -> None:
    """Go on from the last checkpoint in `folder` if there is one, to the end of the manifest or to `max_steps`."""
    args = TrainingArguments(
        str(folder), num_train_epochs=1, max_steps=max_steps or -1, ignore_data_skip=True, save_steps=5, report_to=[]
    )
    dataset = ManifestDataset(manifest, batch_size=4, rank=args.process_index, world_size=args.world_size)
    loader = ManifestLoader(dataset, num_workers=num_workers, collate_fn=transformers_inputs)
    trainer = ManifestTrainer(loader=loader, model=model, args=args)
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=None)
    if last is not None:
        loader.load_state_dict(json.loads((last / "loader.json").read_text()))
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
