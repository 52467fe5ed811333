from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.loader import IGNORED_LABEL, ManifestDataset
from fastmix_data.loading.transformers_inputs import transformers_inputs
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from train.proxy.losses import ModelInputs, model_inputs, sequence_losses


@pytest.fixture
def manifest(make_catalog: Callable[..., Catalog]) -> Path:
    """Plain text and examples with masks, several to a sequence, and padding at the ends of both."""
    catalog = make_catalog({"plain": [101], "examples": [150]}, masked=("examples",))
    weights = {"plain": 0.4, "examples": 0.6}
    emit_manifest(catalog, Mixture(weights=weights), emit=EmitSection(token_budget=240), directory=catalog.root / "manifest")
    return catalog.root / "manifest"


def make_model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model("llama", vocab_size=1 << 16, tie_word_embeddings=True, **shape)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64)


def test_a_models_own_loss_is_the_mean_over_the_manifests_labels(manifest: Path) -> None:
    model = make_model()
    batch = next(iter(ManifestDataset(manifest, batch_size=15)))
    assert (batch["labels"] == IGNORED_LABEL).any() and (batch["positions"][:, 1:] == 0).any()
    logits = model(**model_inputs(ModelInputs(batch["tokens"], batch["positions"]), with_positions=False)).logits
    ours = sequence_losses(logits, batch["labels"]).sum() / (batch["labels"] != IGNORED_LABEL).sum()
    inputs = transformers_inputs(batch)
    torch.testing.assert_close(model(**inputs).loss.double(), ours, rtol=1e-6, atol=0)
    # Without shift_labels, a trainer that shifts by itself has the same labels but for the last of each sequence.
    shifting = model(**{name: values for name, values in inputs.items() if name != "shift_labels"}).loss
    cut = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, :-1].flatten(), ignore_index=IGNORED_LABEL)
    torch.testing.assert_close(shifting.double(), cut.double(), rtol=1e-6, atol=0)
    carried = inputs["labels"] != IGNORED_LABEL
    assert torch.equal(inputs["labels"][carried], inputs["input_ids"][carried])


def test_single_sequences_are_put_together_as_a_collator_does(manifest: Path) -> None:
    batch = next(iter(ManifestDataset(manifest, batch_size=15)))
    collated = transformers_inputs([item for item, _ in zip(ManifestDataset(manifest), range(15), strict=False)], source=True)
    whole = transformers_inputs(batch, source=True)
    assert collated.keys() == whole.keys() and all(torch.equal(collated[name], whole[name]) for name in whole)
    assert "source" not in transformers_inputs(batch)


def test_positions_are_told_only_where_examples_begin_within_a_sequence(manifest: Path) -> None:
    plain = [item for item in ManifestDataset(manifest) if not (item["positions"][1:] == 0).any()]
    assert plain and "position_ids" not in transformers_inputs(plain)
