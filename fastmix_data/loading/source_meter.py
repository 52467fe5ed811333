"""Tokens and loss of each source in the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastmix_data.arrays import Float64s
from fastmix_data.errors import MismatchError
from fastmix_data.loading.transformers_inputs import IGNORED_LABEL
from fastmix_data.manifest.manifest import Manifest

Sink = Callable[[dict[str, float], int], object]
_TOKENS, _LOSS_TOKENS, _LOSS = range(3)


class _OfManifest(Protocol):
    @property
    def manifest(self) -> Manifest: ...


class SourceMeter:
    """Counts, for each source of a manifest, what training has read and what it lost there, over all ranks.

    `update` adds up on the device of the loss, and waits neither for it nor for other ranks. `log` and `state_dict` bring the sums of all
    ranks together, so all ranks call them, together; only rank 0 writes.

        meter = SourceMeter(dataset)
        for step, batch in enumerate(loader):
            ...
            meter.update(batch, loss_per_token)
            if step % 100 == 0:
                meter.log(step, sink)
    """

    def __init__(self, dataset: _OfManifest, *, group: dist.ProcessGroup | None = None) -> None:
        """Start from nothing.

        Args:
            dataset: whose manifest the batches are of.
            group: the ranks that read different items, if these are not all ranks.
        """
        sources = dataset.manifest.served_sources
        self._path = dataset.manifest.path
        self._names = [source.name for source in sources]
        self._asked_K = np.array([source.weight for source in sources])
        self._unique_K = np.array([source.unique_tokens for source in sources])
        self._group = group
        # This rank's sums since ranks last met, which stay on the device; those of all ranks since the last log, and from the beginning.
        self._pending_KC = torch.zeros(len(sources), 3, dtype=torch.float64)
        self._recent_KC: Float64s = np.zeros((len(sources), 3))
        self._total_KC: Float64s = np.zeros((len(sources), 3))

    @torch.no_grad()
    def update(self, batch: Mapping[str, Tensor], loss_per_token: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            batch: an item of `ManifestDataset`, or of `transformers_inputs(..., source=True)`.
            loss_per_token: of each label, shape (B, L) or flat; what stands at labels without loss does not matter. Without it tokens
                are counted only.

        Raises:
            MismatchError: there is not one loss for each label.
        """
        source_B = torch.atleast_1d(batch["source"])
        labels_BT = (batch["shift_labels"] if "shift_labels" in batch else batch["labels"]).reshape(len(source_B), -1)
        device = labels_BT.device if loss_per_token is None else loss_per_token.device
        carries_BT = labels_BT.to(device, non_blocking=True) != IGNORED_LABEL
        sums_BC = torch.zeros(len(source_B), 3, dtype=torch.float64, device=device)
        sums_BC[:, _TOKENS] = labels_BT.shape[1]
        sums_BC[:, _LOSS_TOKENS] = carries_BT.sum(dim=1)
        if loss_per_token is not None:
            if loss_per_token.numel() != labels_BT.numel():
                problem = f"{loss_per_token.numel()} losses for {labels_BT.numel()} labels"
                remedy = "give the loss of each token: cross_entropy(..., reduction='none')"
                raise MismatchError("SourceMeter.update", problem, remedy)
            # Chosen, not multiplied by zero: a loss without a label may be anything, and infinity times zero is no number.
            losses_BT = torch.where(carries_BT, loss_per_token.reshape(labels_BT.shape), 0)
            sums_BC[:, _LOSS] = losses_BT.sum(dim=1, dtype=torch.float64)
        self._pending_KC = self._pending_KC.to(device)
        self._pending_KC.index_add_(0, source_B.to(device, non_blocking=True), sums_BC)

    def log(self, step: int, sink: Sink | None = None) -> dict[str, float]:
        """Figures of each source, given to `sink(figures, step)` on rank 0 and returned on all.

        `source_tokens`, `source_loss_tokens`, `source_loss` (mean over loss tokens, nats) and `source_share` (of all tokens) are since
        the last log; with `_total` in their names they are from the beginning. `source_epochs` is how often its tokens have been
        read, and `source_drift` the share from the beginning less the share that was asked for. A source is named after
        the slash. Tokens are whole sequences, the padding at a partition's end included.
        """
        self._meet()
        figures = {**_sums("source", self._names, self._recent_KC), **_sums("source_total", self._names, self._total_KC)}
        tokens_K = self._total_KC[:, _TOKENS]
        for name, epochs in zip(self._names, tokens_K / np.maximum(self._unique_K, 1), strict=True):
            figures[f"source_epochs/{name}"] = float(epochs)
        if tokens_K.sum():
            drift_K = tokens_K / tokens_K.sum() - self._asked_K
            figures |= {f"source_drift/{name}": float(drift) for name, drift in zip(self._names, drift_K, strict=True)}
            figures["source_drift_largest"] = float(np.abs(drift_K).max())
        self._recent_KC = np.zeros_like(self._recent_KC)
        if sink is not None and (not self._is_distributed() or dist.get_rank(self._group) == 0):
            sink(figures, step)
        return figures

    def state_dict(self) -> dict[str, Any]:
        """JSON-able sums of all ranks, the same on each; all ranks call it together."""
        self._meet()
        return {"sources": list(self._names), "recent": self._recent_KC.tolist(), "total": self._total_KC.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, on any number of ranks. Sources that it does not know start from nothing.

        Raises:
            MismatchError: it has sources that the manifest lacks.
        """
        if missing := sorted(set(state["sources"]) - set(self._names)):
            problem = f"the meter's state has sources that the manifest lacks: {', '.join(missing)}"
            raise MismatchError(self._path, problem, "resume with the manifest it was saved with, or start a new meter")
        rows = [self._names.index(name) for name in state["sources"]]
        self._pending_KC.zero_()
        for sums_KC, saved in ((self._recent_KC, state["recent"]), (self._total_KC, state["total"])):
            sums_KC[:] = 0
            sums_KC[rows] = saved

    def _meet(self) -> None:
        """Add the pending sums of all ranks to those of all ranks: one collective and one wait for the device."""
        if self._is_distributed():
            if dist.get_backend(self._group) == "nccl":
                self._pending_KC = self._pending_KC.cuda()  # a rank that has read nothing yet has them on the host
            dist.all_reduce(self._pending_KC, group=self._group)
        met_KC = self._pending_KC.cpu().numpy()
        self._recent_KC = self._recent_KC + met_KC
        self._total_KC = self._total_KC + met_KC
        self._pending_KC.zero_()

    def _is_distributed(self) -> bool:
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self._group) > 1


def _sums(prefix: str, names: list[str], sums_KC: Float64s) -> dict[str, float]:
    """Counts, mean loss and share of each source; what would divide by zero is left out."""
    figures: dict[str, float] = {}
    all_tokens = float(sums_KC[:, _TOKENS].sum())
    for name, (tokens, loss_tokens, loss) in zip(names, sums_KC.tolist(), strict=True):
        figures[f"{prefix}_tokens/{name}"], figures[f"{prefix}_loss_tokens/{name}"] = tokens, loss_tokens
        if loss_tokens:
            figures[f"{prefix}_loss/{name}"] = loss / loss_tokens
        if all_tokens:
            figures[f"{prefix}_share/{name}"] = tokens / all_tokens
    return figures
