"""Logits that are cut give the losses, gradients and scores of whole ones, and are never held at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from proxy_zoo import REFUSED, SCORED
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from train.proxy import loss_model
from train.proxy.loss_model import LossModel, ends_in_head, whole_logits_remark
from train.proxy.losses import IGNORED, ModelInputs, sequence_losses
from train.scores.hypergradient import HypergradientProbe, Scope

BATCH, LENGTH, VOCABULARY, WIDTH = 3, 11, 640, 32
DOES_MORE = {"gemma2", "recurrent_gemma", "cohere"}  # caps, and a scale
CONFIGS = SCORED | {name: config for name, (config, _) in REFUSED.items()} | {"cohere": SCORED["llama"]}


def make_model(name: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=VOCABULARY, use_cache=False, **CONFIGS[name], **keys)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def cut(model: Any, monkeypatch: pytest.MonkeyPatch, *, num_pieces: int) -> LossModel:
    monkeypatch.setattr(loss_model, "LARGEST_LOGITS_BYTES", -(-4 * BATCH * LENGTH * VOCABULARY // num_pieces))
    return LossModel(model, shape=(BATCH, LENGTH))


def make_batch(seed: int) -> tuple[ModelInputs, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    return ModelInputs(tokens[:, :-1]), tokens[:, 1:].masked_fill(torch.rand(BATCH, LENGTH, generator=generator) < 0.2, IGNORED)


def losses_of(losses: LossModel, seed: int) -> Tensor:
    inputs, labels_BT = make_batch(seed)
    found: Tensor = losses(labels_BT, **losses.arguments(inputs)).sum(dim=1)
    return found


def everything_of(losses: LossModel, scope: Scope) -> list[Tensor]:
    """Target gradient, scores, losses and their gradients."""
    probe = HypergradientProbe(losses.model, scope=scope)
    losses.eval()
    probe.target_gradient(losses_of(losses, 1).sum() for _ in range(1))
    target = [v.clone() for v in probe.whole_target()]
    with probe.scoring((BATCH, LENGTH)) as alignments:
        probe.backward(losses_of(losses, 2).sum())
    found = losses_of(losses, 3)
    found.sum().backward()
    with torch.no_grad():
        assert torch.allclose(losses_of(losses, 3), found)
    return [*target, alignments(), found, *(parameter.grad for parameter in losses.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("scope", ["all", "last_block", "head"])
@pytest.mark.parametrize(("name", "keys"), [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("gpt2", {}), ("phi", {})])
def test_cut_logits_give_what_whole_ones_do(
    name: str, keys: dict[str, Any], scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = everything_of(LossModel(make_model(name, **keys), shape=(BATCH, LENGTH)), scope)
    inputs, labels = make_batch(3)
    losses = cut(make_model(name, **keys), monkeypatch, num_pieces=4)
    assert losses.piece == 3
    arguments = losses.arguments(inputs)
    assert torch.allclose(sequence_losses(losses.model.eval()(**arguments).logits, labels), losses_of(losses, 3))
    for found, wanted in zip(everything_of(losses, scope), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))


class Largest(TorchDispatchMode):
    """The most numbers that a tensor had whose last axis is the vocabulary, weights left out."""

    def __init__(self) -> None:
        super().__init__()
        self.num_logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        logits = [tensor for tensor in tensors if tensor.shape[-1:] == (VOCABULARY,) and WIDTH not in tensor.shape]
        self.num_logits = max([self.num_logits, *(leaf.numel() for leaf in logits)])
        return result


def test_no_pass_holds_more_logits_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    for num_pieces, most in ((1, BATCH * LENGTH * VOCABULARY), (4, BATCH * 3 * VOCABULARY)):
        losses = cut(make_model("llama"), monkeypatch, num_pieces=num_pieces)
        with Largest() as seen:
            everything_of(losses, "head")
        assert seen.num_logits == most


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_does_more_to_its_logits_is_seen_and_keeps_them_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(name)
    assert ends_in_head(model) == (name not in DOES_MORE)
    losses = cut(model, monkeypatch, num_pieces=4)
    remark = whole_logits_remark(model, shape=(BATCH, LENGTH))
    if name in DOES_MORE:
        assert losses.piece is None and "84.5KB in float32" in remark and "smaller training.micro_batch" in remark
    else:
        assert losses.piece == 3 and not remark


def test_a_bias_that_starts_at_zero_is_no_part_of_the_head() -> None:
    class Biased(type(make_model("llama"))):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.bias = nn.Parameter(torch.zeros(VOCABULARY))

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + self.bias
            return output

    assert not ends_in_head(Biased(make_model("llama").config))
