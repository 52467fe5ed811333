"""Whether a model keeps examples that share a sequence apart, found out before it trains: by what it computes, not by its name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastmix_data.errors import RecipeError
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs

# Lengths of the examples of each sequence. Eight tokens in all, the shortest sequence there is, so that no table of positions is too short.
_PACKED = ((3, 5), (1, 4, 3))
_TOLERANCE = 1e-4  # of the largest logit; float32 agrees to 1e-6
_NUDGE = 0.1  # of a bias or a norm


def check_examples_apart(model: Any, *, remedy: str) -> None:
    """See on a tiny batch that the logits of packed examples are those of the same examples alone.

    State that runs on from token to token, convolutions and attention that is told positions in another way all fail it.

    Args:
        model: in float32, as `build_proxy` makes it; one that is thrown away afterwards, for its parameters change.
        remedy: what to do about it.

    Raises:
        RecipeError: names the model's class.
    """
    name = type(model).__name__
    with_positions, vocab_size = has_learned_positions(model), model.config.get_text_config().vocab_size
    tokens_BT = torch.randint(vocab_size, (len(_PACKED), sum(_PACKED[0])), generator=torch.Generator().manual_seed(0))
    positions_BT = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in _PACKED])
    stir(model)
    model.eval()
    try:
        with torch.no_grad():
            found = _logits(model, ModelInputs(tokens_BT, positions_BT), with_positions=with_positions)
            alone = [
                _logits(model, ModelInputs(example[None]), with_positions=with_positions)[0]
                for row, lengths in zip(tokens_BT, _PACKED, strict=True)
                for example in row.split(lengths)
            ]
    except TypeError as error:
        raise RecipeError("proxy", f"{name} cannot be told where examples begin in a sequence ({error})", remedy) from error
    expected = torch.cat(alone)
    difference = float((found.flatten(0, 1) - expected).abs().max() / expected.abs().max())
    if not difference < _TOLERANCE:
        raise RecipeError("proxy", f"{name} lets examples that share a sequence see each other", remedy)


def _logits(model: Any, inputs: ModelInputs, *, with_positions: bool) -> Tensor:
    logits: Tensor = model(**model_inputs(inputs, with_positions=with_positions)).logits
    return logits


def stir(model: nn.Module) -> None:
    """Move parameters away from where they start: zeros there, and products of small numbers, hide what is to pass through them.

    A fresh lfm2's convolutions move logits by 1e-4 of the largest, one with parameters of this size by a quarter of it.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else _NUDGE
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
