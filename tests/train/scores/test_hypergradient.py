"""The one-pass scores against separate backward passes, which are the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from separate_passes import expected_scores, losses_of, probe_scores, separate_gradients
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.errors import FastmixError
from train.proxy.losses import IGNORED
from train.scores.hypergradient import HypergradientProbe

BATCH, LENGTH, VOCABULARY = 6, 12, 50

_SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SMALL, "num_hidden_layers": 2},
    "llama-tied": {**_SMALL, "num_hidden_layers": 1, "tie_word_embeddings": True, "pad_token_id": 3},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "gpt_neox": {**_SMALL, "num_hidden_layers": 2},
    "gemma": {**_SMALL, "num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 8},
}


def make_model(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.removesuffix("-tied"), vocab_size=VOCABULARY, **CONFIGS[name])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():  # away from the symmetric start, where norms and biases hardly count
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORED
    return tokens[:, :-1], labels


@pytest.mark.parametrize("scope", ["all", "last_block", "head"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_scores_equal_separate_backward_passes(name: str, scope: str, dtype: torch.dtype, tolerance: float) -> None:
    if name == "gemma":  # its norms compute in float32 whatever the model's dtype
        tolerance = max(tolerance, 1e-5)
    model = make_model(name, dtype)
    target, batch = make_batch(1), make_batch(2)
    expected = expected_scores(model, scope, target, batch)
    found = probe_scores(model, scope, target, batch)
    assert torch.allclose(found.to(dtype), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_norms_equal_those_of_separate_gradients_in_matrices(name: str) -> None:
    model = make_model(name, torch.float64)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())  # untied: a tied matrix counts once in either role
    target, batch = make_batch(1), make_batch(2)
    is_matrix = torch.cat([torch.full((p.numel(),), p.dim() >= 2) for p in model.parameters()])
    expected = separate_gradients(model, "all", target, batch)[1:, is_matrix].norm(dim=1)
    probe = HypergradientProbe(model, scope="all", with_norms=True)
    probe.target_gradient(losses_of(model, target).mean() for _ in range(1))
    with probe.scoring((BATCH, LENGTH)):
        losses_of(model, batch).sum().backward()
    assert torch.allclose(probe.norms().double(), expected, rtol=1e-5)


def test_preconditioning_scores_in_the_metric_of_the_second_moment() -> None:
    model = make_model("llama", torch.float64)
    target, batch = make_batch(1), make_batch(2)
    gradients = separate_gradients(model, "all", target, batch)
    probe = HypergradientProbe(model, scope="all")
    probe.target_gradient(losses_of(model, target).mean() for _ in range(1))
    moments = [torch.rand_like(parameter) for parameter in probe.parameters]
    probe.precondition((0, moment.flatten()) for moment in moments)
    with probe.scoring((BATCH, LENGTH)) as alignments:
        losses_of(model, batch).sum().backward()
    scale = torch.cat([(m.sqrt() + 0.5 * m.mean().sqrt()).flatten() for m in moments])
    assert torch.allclose(alignments(), gradients[1:] @ (gradients[0] / scale), rtol=1e-8)


def test_remembered_target_gradients_weigh_less_with_each_that_follows() -> None:
    model = make_model("llama", torch.float64)
    targets, batch = [make_batch(seed) for seed in (1, 2, 3)], make_batch(4)
    expected = [separate_gradients(model, "all", target, batch) for target in targets]
    mean = sum(0.5**age * gradients[0] for age, gradients in enumerate(reversed(expected))) / 1.75
    probe = HypergradientProbe(model, scope="all", memory=0.5)
    for number, target in enumerate(targets):
        if number == 2:  # a search that is resumed here
            saved, probe = probe.tensors(), HypergradientProbe(model, scope="all", memory=0.5)
            probe.load_tensors(
                {"weight": saved["weight"], "sums": {name: values for name, (_, values) in saved["shares"].items()}}
            )
        probe.target_gradient(losses_of(model, target).mean() for _ in range(1))
        probe.remember()
    with probe.scoring((BATCH, LENGTH)) as alignments:
        losses_of(model, batch).sum().backward()
    assert torch.allclose(alignments(), expected[0][1:] @ mean, rtol=1e-8)


def test_scoring_leaves_the_training_gradient_as_it_is() -> None:
    model = make_model("llama", torch.float64)
    target, batch = make_batch(1), make_batch(2)
    losses_of(model, batch).sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    probe_scores(model, "all", target, batch)
    assert all(torch.equal(a, b.grad) for a, b in zip(plain, model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_target_gradient_adds_up_over_passes_and_touches_no_grad() -> None:
    model = make_model("llama", torch.float64)
    first, second = make_batch(1), make_batch(2)
    probe = HypergradientProbe(model, scope="all")
    probe.target_gradient(losses_of(model, batch).sum() for batch in (first, second))
    expected = torch.autograd.grad(losses_of(model, first).sum() + losses_of(model, second).sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(probe.whole_target(), expected, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_checkpointing_scores_each_sequence_once() -> None:
    model = make_model("llama", torch.float64)
    target, batch = make_batch(1), make_batch(2)
    expected = expected_scores(model, "all", target, batch)
    model.train()
    model.gradient_checkpointing_enable()
    assert torch.allclose(probe_scores(model, "all", target, batch), expected, rtol=1e-9)


def test_a_module_that_cannot_be_split_by_sequence_is_refused_with_a_remedy() -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(0, 1)[:5] * self.scale

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.head = Pool(), nn.Linear(4, VOCABULARY)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(x))

    model = Model()
    probe = HypergradientProbe(model, scope="all")
    probe.target_gradient(iter([model(torch.ones(2, 3, 4)).sum()]))
    with probe.scoring((2, 3)), pytest.raises(FastmixError, match=r"pool .*hypergradient: head"):
        model(torch.ones(2, 3, 4))
