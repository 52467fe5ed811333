"""Token losses and the weights that make any way of sampling sources train on the same mixture."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmix_data.arrays import Bools, Float64s, Tokens

IGNORED = -100


def on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor there; a blocking copy would wait until the GPU has done all that it was given before."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def to_tensors(tokens_BS: Tokens, carries_loss_BT: Bools, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs (B, T) and labels (B, T), int64; labels that carry no loss are -100."""
    # Shards hold uint16 or uint32, which embeddings cannot be looked up by.
    tokens = on_device(tokens_BS.astype(np.int64), device)
    carries_loss = on_device(carries_loss_BT, device)
    return tokens[:, :-1], tokens[:, 1:].masked_fill(~carries_loss, IGNORED)


def has_learned_positions(model: nn.Module) -> bool:
    """Whether a model looks something up beside its tokens, as GPT-2 does; it walks all modules, so ask once."""
    return sum(isinstance(module, nn.Embedding) for module in model.modules()) > 1


def model_inputs(inputs_BT: Tensor, *, with_positions: bool) -> dict[str, Tensor]:
    """Keyword arguments of a forward pass.

    Learned positions are looked up once per sequence: models that share one look-up by broadcasting would hand back a gradient that is
    summed over sequences. Other models are not told positions, which would cost them their fast attention path.
    """
    if not with_positions:
        return {"input_ids": inputs_BT}
    positions = torch.arange(inputs_BT.shape[1], device=inputs_BT.device)
    return {"input_ids": inputs_BT, "position_ids": positions.expand_as(inputs_BT)}


def sequence_losses(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Sum of each sequence's token losses in nats, shape (B,)."""
    batch, length, vocabulary = logits_BTV.shape
    # In float32 whatever the model computes in: a loss in bf16 would have three digits.
    losses = F.cross_entropy(
        logits_BTV.reshape(-1, vocabulary).float() if logits_BTV.dtype != torch.float64 else logits_BTV.reshape(-1, vocabulary),
        labels_BT.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
    )
    return losses.view(batch, length).sum(dim=1)


def sampling_weights(weights_K: Float64s, *, exploration: float) -> Float64s:
    """Shares q that sequences are drawn by: the mixture p pulled towards uniform, so that every source stays in sight."""
    return (1 - exploration) * weights_K + exploration / len(weights_K)


def loss_weights(weights_K: Float64s, *, exploration: float, mean_loss_tokens_K: Float64s, global_batch: int) -> Float64s:
    """Factor of each source's summed token losses in the global batch's loss, shape (K,).

    The batch's loss is sum_i factor[source of i] * (token losses of sequence i). Drawing by q and weighting by p / q has the same
    expectation for every `exploration` (FastMix, arXiv 2606.14971, eq. 4). The normaliser is the number of loss tokens that a batch
    drawn by p has in expectation: it depends neither on what was drawn nor on how the batch is cut into micro-batches, so
    the equivalence is exact, also where sources differ in their share of masked tokens.
    """
    sampled_K = sampling_weights(weights_K, exploration=exploration)
    num_loss_tokens = global_batch * float(weights_K @ mean_loss_tokens_K)
    return weights_K / sampled_K / num_loss_tokens
