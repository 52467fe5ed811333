"""How likely a proxy finds each held-out sequence of a target, for methods that ask for more than the mean loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fastmix_data.arrays import Float64s, Int64s
from fastmix_data.shards.sequences import Half, SequenceReader
from train.proxy.engine import ProxyEngine
from train.proxy.losses import to_tensors
from train.proxy.training import ProxyPlan, micro_batch


class SequenceLikelihoods(NamedTuple):
    """Log likelihood in nats of the labels that carry loss in each sequence, and how many they are, both of shape (N,)."""

    nats_N: Float64s
    num_loss_tokens_N: Int64s


def sequence_likelihoods(
    engine: ProxyEngine, plan: ProxyPlan, *, name: str, half: Half, most_sequences: int
) -> SequenceLikelihoods:
    """Of all sequences in a half of a held-out split, or of a sample spread evenly over it; on one rank.

    The sample is the same for every proxy.
    """
    assert engine.world_size == 1
    reader = SequenceReader(
        plan.catalog,
        sources=[name],
        split="valid",
        sequence_length=plan.training.sequence_length,
        half=half,
        document_attention=plan.training.document_attention,
    )
    available, at_once = int(reader.num_sequences_K[0]), micro_batch(plan.training, 1)
    count = min(available, most_sequences)
    sequence_N = np.arange(count) * available // count
    nats, num_loss_tokens = [], []
    was_training = engine.module.training
    engine.module.eval()
    with torch.no_grad():
        for start in range(0, count, at_once):
            sequence_B = sequence_N[start : start + at_once]
            sequences = reader.read(np.zeros_like(sequence_B), sequence_B)
            inputs, labels_BT = to_tensors(sequences, device=engine.device)
            nats.append(-engine.bare_sequence_losses(inputs, labels_BT).double().cpu().numpy())
            num_loss_tokens.append(sequences.carries_loss_BT.sum(axis=1))
    engine.module.train(was_training)
    return SequenceLikelihoods(np.concatenate(nats), np.concatenate(num_loss_tokens))
