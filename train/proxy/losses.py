"""Token losses and the weights that make any way of sampling sources train on the same mixture."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmix_data.arrays import Float64s
from fastmix_data.shards.sequences import Sequences

IGNORED = -100


def on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor there; a blocking copy would wait until the GPU has done all that it was given before."""
    return torch.from_numpy(array).to(device, non_blocking=True)


class ModelInputs(NamedTuple):
    """What a model reads: tokens (B, T), and positions (B, T) if examples or documents begin anew within sequences."""

    tokens_BT: Tensor
    positions_BT: Tensor | None = None


class HostBatch(NamedTuple):
    """Sequences as tensors in the CPU's memory: tokens (B, T + 1), int64; which labels carry loss, (B, T); positions (B, T), if any."""

    tokens_BS: Tensor
    carries_loss_BT: Tensor
    positions_BT: Tensor | None


def host_batch(sequences: Sequences, *, pinned: bool) -> HostBatch:
    """Sequences ready to be copied; out of pinned memory a GPU copies by itself, while the host goes on."""
    # Shards hold uint16 or uint32, which embeddings cannot be looked up by.
    arrays = (sequences.tokens_BS.astype(np.int64), sequences.carries_loss_BT)
    tokens, carries_loss = (_pinned(torch.from_numpy(array), pinned) for array in arrays)
    positions = None if sequences.positions_BT is None else _pinned(torch.from_numpy(sequences.positions_BT), pinned)
    return HostBatch(tokens, carries_loss, positions)


def _pinned(tensor: Tensor, pinned: bool) -> Tensor:
    return tensor.pin_memory() if pinned else tensor


def device_batch(batch: HostBatch, *, device: torch.device) -> tuple[ModelInputs, Tensor]:
    """Inputs and labels (B, T), int64; labels that carry no loss are -100."""
    tokens, carries_loss = (part.to(device, non_blocking=True) for part in (batch.tokens_BS, batch.carries_loss_BT))
    positions = None if batch.positions_BT is None else batch.positions_BT.to(device, non_blocking=True)
    return ModelInputs(tokens[:, :-1], positions), tokens[:, 1:].masked_fill(~carries_loss, IGNORED)


def to_tensors(sequences: Sequences, *, device: torch.device) -> tuple[ModelInputs, Tensor]:
    """Inputs and labels (B, T) of sequences that were read just now."""
    return device_batch(host_batch(sequences, pinned=False), device=device)


def has_learned_positions(model: nn.Module) -> bool:
    """Whether a model looks something up beside its tokens, as GPT-2 does; it walks all modules, so ask once."""
    return sum(isinstance(module, nn.Embedding) for module in model.modules()) > 1


def model_inputs(inputs: ModelInputs, *, with_positions: bool) -> dict[str, Tensor]:
    """Keyword arguments of a forward pass.

    Where positions begin anew within a sequence, `transformers` lets no token attend beyond the beginning; no mask may be given for
    that. Whether a model follows is seen by `check_examples_apart`.

    Learned positions are looked up once per sequence: models that share one look-up by broadcasting would hand back a gradient that is
    summed over sequences. Other models are not told positions, which would cost them their fast attention path.
    """
    tokens_BT, positions_BT = inputs
    if positions_BT is None and with_positions:
        positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    return {"input_ids": tokens_BT} if positions_BT is None else {"input_ids": tokens_BT, "position_ids": positions_BT}


def token_losses(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Losses in nats, shape (B, T), 0 where a label carries none."""
    batch, length, vocabulary = logits_BTV.shape
    # In float32 whatever the model computes in: a loss in bf16 would have three digits.
    losses = F.cross_entropy(
        logits_BTV.reshape(-1, vocabulary).float() if logits_BTV.dtype != torch.float64 else logits_BTV.reshape(-1, vocabulary),
        labels_BT.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
    )
    return losses.view(batch, length)


def sequence_losses(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Sum of each sequence's token losses in nats, shape (B,)."""
    return token_losses(logits_BTV, labels_BT).sum(dim=1)


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
