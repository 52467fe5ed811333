"""Packed examples against the same examples one by one, on the code path of the proxy: reader, inputs, losses and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.permutation import derive_keys
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from fastmix_data.shards.sequences import SequenceReader
from fastmix_data.shards.shard_format import ShardLayout
from fastmix_data.shards.shard_writer import ShardNames, ShardStream
from fastmix_data.tokens.encoding import EncodedDocuments
from pipelines.preprocess.packing import pack_examples
from train.proxy.losses import IGNORED, ModelInputs, has_learned_positions, model_inputs, sequence_losses, to_tensors
from train.scores.hypergradient import HypergradientProbe

VOCABULARY, EOS, BLOCK, WINDOW, LENGTH = 50, 49, 32, 16, 32
_DENSE = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "num_hidden_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": _DENSE,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "qwen2": {**_DENSE, "num_key_value_heads": 2},
    "mistral": {**_DENSE, "num_key_value_heads": 2, "sliding_window": 5},
}


@dataclass(frozen=True)
class Packed:
    """Five sequences as the proxy reads them, and the examples of each: tokens, and labels with -100 where there is no loss."""

    inputs: ModelInputs
    labels_BT: Tensor
    examples_B: list[list[tuple[Tensor, Tensor]]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("packed")
    lengths = rng.integers(2, WINDOW + 1, 16)
    prompts = rng.integers(0, lengths)
    tokens = rng.integers(0, VOCABULARY - 1, lengths.sum()).astype("<u2")
    tokens[np.cumsum(lengths) - 1] = EOS
    mask = np.concatenate([np.arange(n) >= p for n, p in zip(lengths, prompts, strict=True)]).astype(np.uint8)
    encoded = EncodedDocuments(tokens, np.cumsum(lengths), prompts, mask)
    windows = pack_examples(encoded, window_tokens=WINDOW, eos_id=EOS, key=derive_keys(1))
    layout = ShardLayout(BLOCK, np.dtype("<u2"), has_mask=True)
    stream = ShardStream(ShardNames(root, "qa", "train", 0), layout=layout, max_shard_bytes=layout.num_bytes(2), eos_id=EOS)
    stream.append(windows.tokens, starts_D=windows.start_E, loss_mask=windows.loss_mask, starts=windows.starts)
    catalog = Catalog(root, CatalogInfo(BLOCK, VOCABULARY, EOS, "", sources=("qa",), example_tokens=WINDOW), stream.close())
    reader = SequenceReader(catalog, sources=["qa"], split="train", sequence_length=LENGTH)
    numbers = np.arange(reader.num_sequences_K[0])
    inputs, labels_BT = to_tensors(reader.read(np.zeros_like(numbers), numbers), device=torch.device("cpu"))
    examples_B: list[list[tuple[Tensor, Tensor]]] = [[] for _ in numbers]
    for number, start in zip(windows.order_E.tolist(), windows.start_E.tolist(), strict=True):
        here = slice(encoded.starts_D[number], encoded.ends_D[number])
        example, learned = (torch.from_numpy(part[here].astype(np.int64)) for part in (tokens, mask))
        examples_B[start // LENGTH].append((example[:-1], example[1:].masked_fill(learned[1:] == 0, IGNORED)))
    return Packed(inputs, labels_BT, examples_B)


def make_model(name: str, attention: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=VOCABULARY, use_cache=False, **MODELS[name])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    for parameter in model.parameters():  # away from the symmetric start, where attention and norms hardly count
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def logits_of(model: Any, inputs: ModelInputs) -> Tensor:
    logits: Tensor = model(**model_inputs(inputs, with_positions=has_learned_positions(model))).logits
    return logits


def gradient_of(model: Any, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def losses_alone(model: Any, examples: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([sequence_losses(logits_of(model, ModelInputs(tokens[None])), labels[None]) for tokens, labels in examples])


def test_the_sequences_hold_every_example_whole_beside_others_and_padding(packed: Packed) -> None:
    assert packed.inputs.positions_BT is not None and len(packed.labels_BT) == 5
    assert max(len(examples) for examples in packed.examples_B) >= 4
    for labels, examples in zip(packed.labels_BT, packed.examples_B, strict=True):
        learned = torch.cat([labels[labels != IGNORED] for _, labels in examples])
        assert sorted(labels[labels != IGNORED].tolist()) == sorted(learned.tolist())
        assert sum(len(tokens) + 1 for tokens, _ in examples) <= LENGTH
    assert sum(len(tokens) + 1 for examples in packed.examples_B for tokens, _ in examples) < packed.labels_BT.numel()


@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-9), ("eager", 1e-6)])  # eager takes its softmax in float32
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_the_examples_one_by_one(
    packed: Packed, name: str, attention: str, tolerance: float
) -> None:
    model = make_model(name, attention)
    alone_B = [losses_alone(model, examples) for examples in packed.examples_B]
    logits = logits_of(model, packed.inputs)
    losses_BT = F.cross_entropy(logits.flatten(0, 1), packed.labels_BT.flatten(), reduction="none").view_as(packed.labels_BT)
    assert packed.inputs.positions_BT is not None
    for losses_T, positions_T, alone_E in zip(losses_BT, packed.inputs.positions_BT, alone_B, strict=True):
        by_example = torch.zeros(LENGTH, dtype=torch.float64).index_add(0, (positions_T == 0).cumsum(0) - 1, losses_T)
        with_loss = by_example[by_example > 0]  # padding has none
        assert torch.allclose(with_loss.sort().values, alone_E.sort().values, rtol=tolerance)
    found = gradient_of(model, sequence_losses(logits, packed.labels_BT).sum())
    expected = gradient_of(model, torch.cat(alone_B).sum())
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_packed_sequences_are_those_of_separate_backward_passes_over_their_examples(packed: Packed, name: str) -> None:
    model = make_model(name, "sdpa")
    target, scored = slice(2), slice(2, None)
    v = gradient_of(model, torch.cat([losses_alone(model, examples) for examples in packed.examples_B[target]]).sum())
    expected = torch.stack(
        [v @ gradient_of(model, losses_alone(model, examples).sum()) for examples in packed.examples_B[scored]]
    )

    def losses_B(part: slice) -> Tensor:
        return sequence_losses(logits_of(model, ModelInputs(*(values[part] for values in packed.inputs))), packed.labels_BT[part])

    probe = HypergradientProbe(model, scope="all")
    probe.target_gradient(losses_B(target).sum() for _ in range(1))
    with probe.scoring((len(expected), LENGTH)) as alignments:
        losses_B(scored).sum().backward()
    assert torch.allclose(alignments(), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
