"""Floating point operations of a proxy's passes, and how many a GPU could make: model FLOPs utilisation (MFU).

As in PaLM (arXiv 2204.02311, appendix B) a token takes 6 N operations to train on, and attention 12 L H Q T more: N parameters, L layers,
H heads of Q dimensions, sequences of T tokens. A third of either is the forward pass. What is recomputed does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.training import TrainingSection

# Dense bf16 with sums in float32, by what torch calls the device; the first name that is part of it counts. Makers' data sheets.
_PEAK_FLOPS = {
    "GB200": 2.5e15, "B200": 2.25e15, "B100": 1.75e15, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12,
    "GH200": 989e12, "H800": 989e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "A30": 165e12, "A40": 149.7e12,
    "L40S": 362e12, "L4": 121e12, "MI300X": 1307e12,
}  # fmt: skip


@dataclass(frozen=True)
class ModelFlops:
    """Operations of one proxy.

    Attributes:
        training, forward: of a training step and of a forward pass, for each token.
    """

    training: float
    forward: float

    @classmethod
    def of(cls, config: Any, *, num_parameters: int, num_trained: int, sequence_length: int) -> ModelFlops:
        """Count them.

        Args:
            config: of a `transformers` model; one that does not say how many heads it has is counted by its parameters alone.
            num_trained: of the parameters; no gradient is made of the others.
        """
        text = config.get_text_config()
        layers, heads = getattr(text, "num_hidden_layers", 0), getattr(text, "num_attention_heads", 0)
        size = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) / max(1, heads or 0)
        attention = float((layers or 0) * (heads or 0) * size * sequence_length)
        return cls(4.0 * num_parameters + 2.0 * num_trained + 12 * attention, 2.0 * num_parameters + 4 * attention)

    def of_updates(self, training: TrainingSection, search: SearchSection, *, num_steps: int) -> float:
        """Of a search's steps between two updates of the mixture, with the one target batch and the one scored batch of an update.

        Scoring by all parameters costs a token as much as training on it: derivatives along the target gradient in place of those by
        parameters. Scoring by the head alone is little more than a forward pass.
        """
        scored = self.training if search.hypergradient == "all" else self.forward
        num_scored = (search.target_batch + training.global_batch) * training.sequence_length
        return self.training * training.tokens_per_step * num_steps + scored * num_scored


def peak_flops(device_name: str) -> float | None:
    """Operations per second of a GPU in bf16; None for one that is not in the table.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("NVIDIA H100 PCIe"), peak_flops("NVIDIA A100-SXM4-40GB"), peak_flops("cpu")
    (989000000000000.0, 756000000000000.0, 312000000000000.0, None)
    """
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in device_name), None)


def own_device_name() -> str:
    """The GPU of this process, or cpu."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
