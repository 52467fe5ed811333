"""Scores of sequences by a backward pass for each of them, which are the definition, and the same by the probe, from one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs, sequence_losses
from train.scores.hypergradient import HypergradientProbe


def losses_of(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return sequence_losses(
        model(**model_inputs(ModelInputs(batch[0]), with_positions=has_learned_positions(model)), use_cache=False).logits,
        batch[1],
    )


def parameters_of(model: Any, scope: str) -> list[nn.Parameter]:
    if scope == "all":
        return list(model.parameters())
    head = list(model.get_output_embeddings().parameters())
    if scope == "head":
        return head
    children = dict(model.base_model.named_children())
    norm = children.get("norm") or children.get("ln_f") or children["final_layer_norm"]
    return [*blocks_of(model)[-1].parameters(), *norm.parameters(), *head]


def blocks_of(model: Any) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def expected_scores(model: Any, scope: str, target: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """One backward pass per sequence; what enters the last block or the head is constant (a tied embedding does not count)."""
    gradients = separate_gradients(model, scope, target, batch)
    return gradients[1:] @ gradients[0]


def separate_gradients(model: Any, scope: str, target: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Gradient of the target's mean loss, then of each sequence's loss, one per row."""

    def gradient(losses: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(losses, parameters_of(model, scope), retain_graph=True)])

    def losses(which: tuple[Tensor, Tensor]) -> Tensor:
        if scope == "all":
            return losses_of(model, which)
        if scope == "last_block":

            def detach(_: nn.Module, args: Any, kwargs: Any) -> Any:
                return tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args), kwargs

            handle = blocks_of(model)[-1].register_forward_pre_hook(detach, with_kwargs=True)
            found = losses_of(model, which)
            handle.remove()
            return found
        hidden = model.base_model(input_ids=which[0], use_cache=False).last_hidden_state.detach()
        return sequence_losses(model.get_output_embeddings()(hidden), which[1])

    return torch.stack([gradient(losses(target).mean()), *(gradient(loss) for loss in losses(batch))])


def probe_scores(model: Any, scope: Any, target: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    probe = HypergradientProbe(model, scope=scope)
    probe.target_gradient(losses_of(model, target).mean() for _ in range(1))
    with probe.scoring((batch[0].shape[0], batch[0].shape[1])) as alignments:
        losses_of(model, batch).sum().backward()
        return alignments()
