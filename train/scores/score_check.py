"""Whether the scores of a model are the products they stand for: seen on a tiny batch before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmix_data.errors import RecipeError
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs, sequence_losses
from train.scores.backward_graph import leaves
from train.scores.hypergradient import REMEDY, HypergradientProbe
from train.scores.scored_modules import Scope

_SEQUENCES, _LENGTH = 2, 7  # a prime: no count of heads, experts or groups makes another shape look like B * T
_TOLERANCE = 1e-4  # float32 agrees to 1e-6
_TINY = 1e-30


def check_scores(model: Any, *, scope: Scope) -> None:
    """See on a tiny batch that the scores of such a model are the products they stand for, before anything is trained.

    Each sequence's score is held against the inner product of separate gradients. The pass is one of training, dropout and all; it
    leaves no gradient, random state or mode behind.

    Args:
        model: in float32, as `build_proxy` makes it and before DeepSpeed wraps it.

    Raises:
        RecipeError: scores cannot follow how a module computes or how its parameters are used; names it, and what to do.
    """
    probe, was_training, shape = HypergradientProbe(model, scope=scope), model.training, (_SEQUENCES, _LENGTH)
    tokens_BS = torch.randint(
        model.config.get_text_config().vocab_size, (shape[0], shape[1] + 1), generator=torch.Generator().manual_seed(0)
    )
    inputs = model_inputs(ModelInputs(tokens_BS[:, :-1]), with_positions=has_learned_positions(model))
    random_state = torch.get_rng_state()

    def losses_B() -> Tensor:
        torch.set_rng_state(random_state)  # the same dropout in each pass
        return sequence_losses(model(**inputs).logits, tokens_BS[:, 1:])

    model.train()
    try:
        probe.target_gradient(losses_B()[i] for i in range(shape[0]))
        target = probe.whole_target()
        for v in target:  # else a norm, whose gradient is a hundredth of a head's, could be wrong and pass
            v /= v.norm() + _TINY
        with probe.scoring(shape) as alignments:
            loss = losses_B().sum()
            used = leaves(loss)
            probe.backward(loss)
        unseen, found_B = probe.unseen(used), alignments()
        products = []
        for n in range(shape[0]):
            probe.target_gradient(losses_B()[i] for i in [n])
            products.append(_inner(target, probe.whole_target()))
        expected_B = torch.stack(products)
    finally:
        model.train(was_training)
        torch.set_rng_state(random_state)
    if unseen:
        names = " and ".join(dict.fromkeys(re.sub(r"\.\d+\b", ".*", name) for name in unseen))
        raise RecipeError("proxy", f"parameters of {names} are used without calling them and would not be scored", REMEDY)
    error = float((found_B - expected_B).abs().max() / expected_B.abs().max())
    if not error < _TOLERANCE:
        raise RecipeError("proxy", f"scores of {type(model).__name__} are {error:.1%} off the gradients they stand for", REMEDY)


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
