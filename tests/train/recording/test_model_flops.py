from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from train.recording.model_flops import ModelFlops


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_step_takes_what_torch_counts(kind: str) -> None:
    """But for embeddings of positions, biases and norms; that of tokens is tied to the head, and is multiplied there."""
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "tie_word_embeddings": True,
    }
    sizes |= {"bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **({"intermediate_size": 96} if kind == "llama" else {"n_positions": 128}))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counted:
        model(torch.zeros(2, 128, dtype=torch.int64)).logits.sum().backward()
    flops = ModelFlops.of(config, num_parameters=num_parameters, num_trained=num_parameters, sequence_length=128)
    assert 2 * 128 * flops.training == pytest.approx(counted.get_total_flops(), rel=0.06)
    assert 3 * flops.forward == pytest.approx(flops.training)
