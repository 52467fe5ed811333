"""A batch as models of `transformers` take it, and every trainer that calls `model(**batch)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.utils.data import default_collate

IGNORED_LABEL = -100
Item = dict[str, torch.Tensor]


def transformers_inputs(batch: Mapping[str, torch.Tensor] | Sequence[Item], *, source: bool = False) -> Item:
    """Keyword arguments of a causal language model, of shape (B, L): `model(**inputs).loss` is the mean over all labels of the batch.

    `labels` stand where their tokens do, since such a model shifts them by one itself. That cuts off the last label of each sequence, the
    first token of the next, so `shift_labels` has them as the manifest has, and the model takes these. One that does not know
    the argument refuses it; without it, the loss lacks one label in L.

    `position_ids` come only with batches in which an example begins within a sequence: models keep examples apart by them, at the cost
    of their fast attention. Elsewhere they would say what a model assumes.

    Args:
        batch: an item of `ManifestDataset` with `batch_size`, or a list of single sequences, as a collator is given.
        source: keep `source` of shape (B,) for a `SourceMeter`; to be taken out before the model is called.
    """
    joined: Mapping[str, torch.Tensor] = batch if isinstance(batch, Mapping) else default_collate(list(batch))
    tokens_BT, shifted_BT, positions_BT = joined["tokens"], joined["labels"], joined["positions"]
    labels_BT = torch.full_like(tokens_BT, IGNORED_LABEL)
    labels_BT[..., 1:] = shifted_BT[..., :-1]
    inputs = {"input_ids": tokens_BT, "labels": labels_BT, "shift_labels": shifted_BT}
    if (positions_BT[..., 1:] == 0).any():
        inputs["position_ids"] = positions_BT
    return {**inputs, "source": joined["source"]} if source else inputs
