"""Whether a model is a causal language model, whatever its name: seen on a pass of two short sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix_data.errors import RecipeError
from fastmix_data.messages import first_line
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs
from train.proxy.model import without_chatter

_LENGTH, _CHANGED = 8, 5
# Of what the changed token does to its own logits. float32 leaves 1e-6; an untrained encoder of width 32 leaks some thousandths.
_TOLERANCE = 1e-4


def check_causal(model: Any) -> None:
    """See that a model runs, and that a token changes the logits of later tokens and of no other.

    It leaves no gradient, random state or mode behind.

    Args:
        model: as `build_proxy` makes it.

    Raises:
        RecipeError: it does not run, its logits are not finite, it looks ahead, or it looks at nothing but the last token.
    """
    vocab_size = model.config.get_text_config().vocab_size
    tokens_BT = torch.randint(vocab_size, (2, _LENGTH), generator=torch.Generator().manual_seed(0))
    changed_BT = tokens_BT.clone()
    changed_BT[0, _CHANGED] = (changed_BT[0, _CHANGED] + 1) % vocab_size
    random_state, was_training = torch.get_rng_state(), model.training
    model.eval()
    try:
        with torch.no_grad(), without_chatter():
            logits_BTV, difference_BT = _logits_and_difference(model, tokens_BT, changed_BT)
    except Exception as error:  # whatever a model's own code makes of values that do not go together
        problem = f"transformers cannot run this {_name(model)} ({first_line(error)})"
        raise RecipeError("proxy", problem, "see which keys of its configuration do not go together") from error
    finally:
        model.train(was_training)
        torch.set_rng_state(random_state)
    if not logits_BTV.isfinite().all():
        raise RecipeError("proxy", f"logits of this {_name(model)} are not finite", "see the scales in its configuration")
    own, later = float(difference_BT[0, _CHANGED]), float(difference_BT[0, _CHANGED + 1 :].max())
    others = float(torch.cat([difference_BT[0, :_CHANGED], difference_BT[1]]).max())
    if others > _TOLERANCE * own:
        problem = f"{_name(model)} is no causal language model: a token changes what it predicts before that token"
        raise RecipeError("proxy", problem, "choose another model_type, llama for example (an encoder may take is_decoder: true)")
    if later == 0:
        problem = f"{_name(model)} predicts from the last token alone"
        raise RecipeError("proxy", problem, "give it at least one layer that looks at earlier ones")


def _logits_and_difference(model: Any, tokens_BT: Tensor, changed_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the first batch, and how far those of the second are from them at most, by token."""
    with_positions = has_learned_positions(model)
    before_BTV, after_BTV = (
        model(**model_inputs(ModelInputs(batch_BT), with_positions=with_positions)).logits for batch_BT in (tokens_BT, changed_BT)
    )
    if before_BTV.shape[:2] != tokens_BT.shape:
        raise ValueError(f"logits of shape {tuple(before_BTV.shape)} for tokens of shape {tuple(tokens_BT.shape)}")
    return before_BTV, (after_BTV - before_BTV).abs().amax(dim=-1)


def _name(model: Any) -> str:
    return type(model).__name__
