"""How many bytes the activations of a pass take: counted in a pass of fake tensors, which take none and compute nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from train.memory.live_bytes import LiveBytes
from train.proxy.deepspeed_config import computes_in_bf16
from train.proxy.loss_model import LossModel, num_logits_pieces
from train.proxy.losses import ModelInputs
from train.proxy.model import with_adapters, without_chatter
from train.proxy.recomputation import recompute_blocks
from train.proxy.training import ProxyPlan


def meta_model(plan: ProxyPlan) -> nn.Module:
    """The proxy without memory: of a checkpoint only its shape is known."""
    with torch.device("meta"):
        return _shaped(plan, torch.float32)


def _shaped(plan: ProxyPlan, dtype: torch.dtype) -> nn.Module:
    with without_chatter():
        # A copy: attention is chosen when a model is built, and noted in its configuration.
        model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(plan.config), dtype=dtype)
    model.config.use_cache = False
    return model if plan.proxy.lora is None else with_adapters(model, plan.proxy.lora)


def pass_bytes(plan: ProxyPlan, *, num_sequences: int, on_gpu: bool = False) -> int:
    """Most bytes that a forward and backward pass holds beside the parameters: activations, losses, and gradients for a moment each.

    Logits that are large are taken to be cut, as they are for all models but those that do more to them than their output layer.

    Args:
        on_gpu: foresee a GPU, whatever this machine has.
    """
    training, shape = plan.training, (num_sequences, plan.training.sequence_length)
    with FakeTensorMode():
        model = _shaped(plan, torch.bfloat16 if computes_in_bf16(training) else torch.float32)
        if training.activation_checkpointing:
            recompute_blocks(model)
        losses = LossModel(model, shape=shape, whole_logits=True)
        if (num_pieces := num_logits_pieces(model, shape=shape, on_gpu=on_gpu)) > 1:
            losses.piece = -(-shape[1] // num_pieces)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_let_go)
        tokens_BT = torch.zeros(shape, dtype=torch.int64)
        with LiveBytes(beside=[*model.parameters(), *model.buffers()]) as live:
            losses(tokens_BT, **losses.arguments(ModelInputs(tokens_BT))).sum().backward()
    return int(live.peak)


def _let_go(parameter: torch.Tensor) -> None:
    parameter.grad = None
