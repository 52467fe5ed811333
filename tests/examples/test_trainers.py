"""The trainers' examples, run on a tiny model that notes what it is given."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from train.proxy.engine import import_deepspeed, process_group

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainers"
DOCS = Path(__file__).parents[2] / "docs" / "trainers.md"
STEPS = 5  # of the first leg; a multiple of the 5 steps after which Lightning and the Trainer save


@pytest.fixture
def manifest(make_catalog: Callable[..., Catalog]) -> Path:
    catalog = make_catalog({"books": [410, 333], "code": [700]}, masked=("code",))
    emit = EmitSection(token_budget=1000, max_epochs=4)
    emit_manifest(catalog, Mixture(weights={"books": 0.6, "code": 0.4}), emit=emit, directory=catalog.root / "manifest")
    return catalog.root / "manifest"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noting_model(noted: list[list[int]]) -> nn.Module:
    """A llama that notes each sequence it reads."""
    torch.manual_seed(0)
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    config = AutoConfig.for_model("llama", vocab_size=1 << 16, tie_word_embeddings=True, **shape)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: noted.extend(inputs[0].tolist()))
    return model


def whole_order(manifest: Path) -> list[list[int]]:
    return [tokens for item in ManifestDataset(manifest, batch_size=4) for tokens in item["tokens"].tolist()]


def check_two_legs(manifest: Path, train: Callable[..., None], *, states: Path, **settings: Any) -> None:
    """A leg of a few steps and one that goes on to the end read what the manifest says, in its order."""
    noted: list[list[int]] = []
    train(manifest, states, noting_model(noted), max_steps=STEPS, **settings)
    order = whole_order(manifest)
    assert len(order) % 4 != 0 and noted == order[: 4 * STEPS]
    train(manifest, states, noting_model(noted), **settings)
    assert noted == order


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_plain_loop_reads_the_manifest_in_order_and_resumes(manifest: Path, tmp_path: Path, num_workers: int) -> None:
    train = example("plain_torch").train
    check_two_legs(manifest, train, states=tmp_path / "state.pt", num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stateful_dataloader_reads_the_manifest_in_order_and_resumes(manifest: Path, tmp_path: Path, num_workers: int) -> None:
    train = example("stateful_dataloader").train
    check_two_legs(manifest, train, states=tmp_path / "state.pt", num_workers=num_workers)


@pytest.mark.filterwarnings("ignore")
def test_lightning_reads_the_manifest_in_order_and_resumes(manifest: Path, tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    check_two_legs(manifest, example("lightning_module").train, states=tmp_path / "last.ckpt", num_workers=2, **quiet)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_reads_the_manifest_in_order_and_resumes(manifest: Path, tmp_path: Path) -> None:
    check_two_legs(manifest, example("transformers_trainer").train, states=tmp_path / "trainer", num_workers=2)


def test_accelerate_reads_the_manifest_in_order_and_resumes(manifest: Path, tmp_path: Path) -> None:
    check_two_legs(manifest, example("accelerate_loop").train, states=tmp_path / "accelerate", num_workers=2)


@pytest.mark.filterwarnings("ignore")
def test_deepspeed_reads_the_manifest_in_order_and_resumes(manifest: Path, tmp_path: Path) -> None:
    import_deepspeed()  # as on a machine without its extensions
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        "zero_optimization": {"stage": 1},
    }
    with process_group(rank=0, world_size=1):
        check_two_legs(manifest, example("deepspeed_engine").train, states=tmp_path / "deepspeed", num_workers=2, config=config)


def test_every_snippet_of_the_docs_is_a_run_of_an_examples_lines() -> None:
    def unindented(text: str) -> str:
        return "\n".join(line.strip() for line in text.strip().splitlines())

    text = DOCS.read_text()
    snippets = re.findall(r"```python\n# examples/trainers/(\S+)\n(.*?)```", text, flags=re.S)
    assert {name for name, _ in snippets} == {path.name for path in EXAMPLES.glob("*.py")}
    assert text.count("```python") == len(snippets)
    for name, snippet in snippets:
        assert unindented(snippet) in unindented((EXAMPLES / name).read_text()), name
