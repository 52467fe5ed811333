"""Proxies of one architecture stacked into one: their parameters lie above one another, and one pass runs all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from train.proxy.engine import decays
from train.proxy.losses import ModelInputs, sequence_losses

_ALIGNED = 64  # numbers; fast matrix products want a matrix to begin at a multiple of 16 bytes


class StackedProxies:
    """N proxies that differ in nothing but the values of the parameters that train.

    Each proxy is a row of one matrix, so that an optimiser's step is a handful of operations however many parameters there are.

    Attributes:
        rows_NP: the trained parameters of each, float32; zeros at first, and between parameters.
        decays_P: 1.0 where weight decay is for a parameter, else 0.0.
        num_proxies, device: how many there are, and where.
    """

    def __init__(self, model: nn.Module, *, num_proxies: int, device: torch.device, dtype: torch.dtype) -> None:
        """Make room.

        Args:
            model: as `ProxyPlan.build_model` makes it; it is used up. What of it does not train, all proxies share.
            dtype: that parameters have in passes; buffers keep their own, as under DeepSpeed.

        Raises:
            Exception: the model's attention cannot be chosen.
        """
        # Fast paths of attention ask for values of the mask, or have no rule for a stack of models.
        made: Any = model
        made.set_attn_implementation("eager")
        self.num_proxies, self.device, self._dtype, self._model = num_proxies, device, dtype, model.to(device)
        self._places: dict[str, tuple[int, torch.Size]] = {}
        size, decaying = 0, []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
                continue
            self._places[name] = size, parameter.shape
            if decays(parameter):
                decaying.append(slice(size, size + parameter.numel()))
            size += -(-parameter.numel() // _ALIGNED) * _ALIGNED
        self.rows_NP = torch.zeros(num_proxies, size, device=device)
        self.decays_P = torch.zeros(size, device=device)
        for place in decaying:
            self.decays_P[place] = 1.0

    def set_parameters(self, number: int, state: Mapping[str, Tensor]) -> None:
        """Give one proxy the parameters of a state dict."""
        for name, (start, shape) in self._places.items():
            self.rows_NP[number, start : start + shape.numel()] = state[name].reshape(-1).to(self.rows_NP)

    def state_dict(self, number: int) -> dict[str, Tensor]:
        """One proxy's state dict on the CPU, as its model under DeepSpeed hands it out: with parameters as passes have them."""
        first_name = {id(parameter): name for name, parameter in self._model.named_parameters()}
        trained = {name: rows[number].to(self._dtype).cpu() for name, rows in self.parameters_of(self.rows_NP).items()}
        # Tied parameters have several names, of which `named_parameters` tells one.
        names = {name: first_name[id(parameter)] for name, parameter in self._model.named_parameters(remove_duplicate=False)}
        return {
            name: trained[names[name]] if names.get(name) in trained else value.cpu().clone()
            for name, value in self._model.state_dict().items()
        }

    def parameters_of(self, rows_NP: Tensor) -> dict[str, Tensor]:
        """Views of rows by parameter, each of shape (N, *shape)."""
        return {
            name: rows_NP[:, start : start + shape.numel()].unflatten(1, shape) for name, (start, shape) in self._places.items()
        }

    def gradients(self, inputs: ModelInputs, labels_NBT: Tensor, *, factor_N: Tensor, gradients_NP: Tensor) -> Tensor:
        """Write the gradients of each proxy's loss on a batch of its own, factor * summed token losses, in rows like the parameters'.

        Args:
            inputs: tokens, and positions if they begin anew within sequences, of shape (N, B, T).
            gradients_NP: zero between parameters.
        Returns:
            The losses, shape (N,).
        """

        def loss_of(
            parameters: dict[str, Tensor],
            tokens_BT: Tensor,
            positions_BT: Tensor | None,
            mask: Tensor,
            labels_BT: Tensor,
            factor: Tensor,
        ) -> Tensor:
            logits_BTV = self._logits(parameters, ModelInputs(tokens_BT, positions_BT), mask)
            return sequence_losses(logits_BTV, labels_BT).sum() * factor

        tokens_NBT, positions_NBT = inputs
        own = None if positions_NBT is None else 0  # without positions all have one mask
        each = vmap(grad_and_value(loss_of), in_dims=(0, 0, own, own, 0, 0))
        parameters = self.parameters_of(self.rows_NP.to(self._dtype))
        found, losses_N = each(parameters, tokens_NBT, positions_NBT, self._mask(inputs), labels_NBT, factor_N)
        for name, rows in self.parameters_of(gradients_NP).items():
            rows.copy_(found[name])
        losses: Tensor = losses_N
        return losses

    @torch.no_grad()
    def logits(self, inputs: ModelInputs) -> Tensor:
        """Logits of all proxies on the same inputs (B, T), shape (N, B, T, V)."""
        run = vmap(self._logits, in_dims=(0, None, None))
        logits: Tensor = run(self.parameters_of(self.rows_NP.to(self._dtype)), inputs, self._mask(inputs))
        return logits

    @torch.no_grad()
    def sequence_losses(self, inputs: ModelInputs, labels_BT: Tensor) -> Tensor:
        """Sum of each sequence's token losses in nats in evaluation mode, for all proxies on the same sequences, shape (N, B)."""
        was_training = self._model.training
        self._model.eval()
        losses_NB: Tensor = vmap(sequence_losses, in_dims=(0, None))(self.logits(inputs), labels_BT)
        self._model.train(was_training)
        return losses_NB

    def _logits(self, parameters: dict[str, Tensor], inputs: ModelInputs, mask: Tensor) -> Tensor:
        tokens_BT, positions_BT = inputs
        if positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[-1], device=self.device).expand_as(tokens_BT)
        arguments = {"input_ids": tokens_BT, "position_ids": positions_BT, "attention_mask": mask}
        logits: Tensor = functional_call(self._model, parameters, kwargs=arguments).logits
        return logits

    def _mask(self, inputs: ModelInputs) -> Tensor:
        """What is added to attention scores, shape (..., B, 1, T, T): a token sees itself and what comes before it in its example."""
        tokens, positions = inputs
        length = tokens.shape[-1]
        seen = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        if positions is None:
            seen = seen.expand(tokens.shape[-2], 1, -1, -1)
        else:
            example = (positions == 0).cumsum(dim=-1)[..., None, :]
            seen = seen & (example[..., :, None] == example[..., None, :])
        return torch.zeros(seen.shape, dtype=self._dtype, device=self.device).masked_fill(~seen, torch.finfo(self._dtype).min)
