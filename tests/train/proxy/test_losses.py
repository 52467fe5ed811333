from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmix_data.sampler import MixtureSampler
from fastmix_data.shards.sequences import Sequences
from train.proxy.losses import IGNORED, ModelInputs, loss_weights, model_inputs, sampling_weights, sequence_losses, to_tensors

simplex = st.lists(st.floats(0.01, 1), min_size=2, max_size=8).map(lambda raw: np.array(raw) / sum(raw))


@given(weights=simplex, exploration=st.floats(0, 1), seed=st.integers(0, 1000))
def test_expected_training_gradient_is_the_same_for_every_exploration(weights: np.ndarray, exploration: float, seed: int) -> None:
    """The paper's equivalence, also where sources differ in their share of masked tokens."""
    rng = np.random.default_rng(seed)
    mean_tokens = rng.uniform(1, 128, len(weights))
    gradients = rng.normal(size=(len(weights), 5))  # of each source's summed token losses, per sequence

    def expected(exploration: float) -> np.ndarray:
        drawn = 32 * sampling_weights(weights, exploration=exploration)
        factors = loss_weights(weights, exploration=exploration, mean_loss_tokens_K=mean_tokens, global_batch=32)
        return (drawn * factors) @ gradients

    by_mixture = weights @ gradients / (weights @ mean_tokens)
    assert np.allclose(expected(exploration), by_mixture, rtol=1e-9)


@pytest.mark.parametrize("exploration", [0.0, 0.25, 1.0])
def test_sampled_batches_give_the_mixture_in_the_long_run(exploration: float) -> None:
    weights = np.array([0.7, 0.2, 0.1])
    sampler = MixtureSampler([9, 9, 9], sources=list("abc"), global_batch=8, seed=0, fingerprint="")
    factors = loss_weights(weights, exploration=exploration, mean_loss_tokens_K=np.full(3, 10.0), global_batch=8)
    total, num_steps = np.zeros(3), 400
    for _ in range(num_steps):
        plan = sampler.next(sampling_weights(weights, exploration=exploration))
        total += np.bincount(plan.source_B, factors[plan.source_B] * 10, minlength=3)
    assert (np.abs(total - num_steps * weights) <= 2 * factors * 10).all()  # what was drawn is off by two sequences at most


def test_nonuniform_initial_weights_do_not_count_twice() -> None:
    """The reference code put them into the sampler and into the loss."""
    weights = np.array([0.8, 0.2])
    for exploration in (0.0, 0.5, 1.0):
        factors = loss_weights(weights, exploration=exploration, mean_loss_tokens_K=np.ones(2), global_batch=1)
        assert np.allclose(factors * sampling_weights(weights, exploration=exploration), weights)


def test_labels_are_the_next_tokens_and_masked_ones_are_ignored() -> None:
    tokens = np.array([[1, 2, 3, 4]], "<u2")
    sequences = Sequences(tokens, np.array([[True, False, True]]), np.array([[0, 1, 0]]))
    inputs, labels = to_tensors(sequences, device=torch.device("cpu"))
    assert inputs.tokens_BT.tolist() == [[1, 2, 3]] and labels.tolist() == [[2, IGNORED, 4]]
    assert inputs.positions_BT is not None and inputs.positions_BT.tolist() == [[0, 1, 0]]
    assert to_tensors(sequences._replace(positions_BT=None), device=torch.device("cpu"))[0].positions_BT is None


def test_a_model_is_told_positions_where_they_restart_or_are_learned_and_else_keeps_its_fast_path() -> None:
    tokens, restarting = torch.tensor([[4, 5, 6]]), torch.tensor([[0, 1, 0]])
    assert set(model_inputs(ModelInputs(tokens), with_positions=False)) == {"input_ids"}
    assert model_inputs(ModelInputs(tokens), with_positions=True)["position_ids"].tolist() == [[0, 1, 2]]
    for with_positions in (False, True):
        assert model_inputs(ModelInputs(tokens, restarting), with_positions=with_positions)["position_ids"] is restarting


def test_sequence_losses_sum_token_losses() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    labels = torch.tensor([[1, IGNORED, 2], [0, 3, 4]])
    expected = [
        -sum(torch.log_softmax(logits[b], -1)[t, labels[b, t]] for t in range(3) if labels[b, t] != IGNORED) for b in range(2)
    ]
    assert torch.allclose(sequence_losses(logits, labels), torch.stack(expected))
