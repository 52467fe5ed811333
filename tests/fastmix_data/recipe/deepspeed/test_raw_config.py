"""What of a raw DeepSpeed configuration is taken, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.proxy import DeepspeedSection

# As Hugging Face's trainer is given it, but for the scheduler.
THEIRS: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "contiguous_gradients": True,
        "round_robin_gradients": False,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
PASSED = {
    "zero_optimization": {
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "contiguous_gradients": True,
    },
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
}


def load(folder: Path, deepspeed: str) -> DeepspeedSection:
    path = folder / "recipe.yaml"
    path.write_text(f"tokenizer: {{bytes: true}}\nsources: {{a: {{files: a.txt}}}}\ndeepspeed: {deepspeed}\n")
    return load_recipe(path).deepspeed


def test_a_file_beside_the_recipe_is_what_its_keys_are_and_auto_is_the_recipes(tmp_path: Path) -> None:
    (tmp_path / "ds_config.json").write_text(json.dumps(THEIRS))
    named = load(tmp_path, "{zero_stage: 2, config: ds_config.json}")
    assert named == load(tmp_path, f"{{zero_stage: 2, config: {json.dumps(THEIRS)}}}") and named.config == PASSED
    again = DeepspeedSection.model_validate(named.model_dump(mode="json"))  # as it is saved beside a result
    assert again == named
    assert named.on_one_rank() == named  # it offloads, which one rank needs as well
    assert DeepspeedSection(zero_stage=3, config={"zero_optimization": {"overlap_comm": False}}).on_one_rank().zero_stage == 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"train_batch_size": 8}, "train_batch_size is not taken from here; set training.global_batch"),
        ({"gradient_accumulation_steps": 2}, "set training.global_batch and training.micro_batch"),
        ({"gradient_clipping": 1.0}, "set training.gradient_clipping"),
        ({"fp16": {"enabled": True}}, "set training.precision"),
        ({"bf16": {"enabled": True}}, "set training.precision"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "set training.learning_rate, training.weight_decay"),
        ({"optimizer": {"type": "Lion", "params": {"lr": "auto"}}}, "set training.learning_rate, training.weight_decay"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}}, "training.warmup_fraction"),
        ({"zero_optimization": {"stage": 3}}, "write deepspeed.zero_stage: 3"),
        ({"zero_optimization": {"overlap_com": True}}, "did you mean 'overlap_comm'?"),
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'?"),
        ({"zero_optimization": True}, "zero_optimization is a mapping, not True"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "scores would be of rounded weights"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "second moments"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "parameters at stage 3"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}}, "write device: cpu"),
        ({"data_efficiency": {"enabled": True}}, "proxies are compared on the same data"),
        ({"gradient_allreduce_op": "sum"}, "the mean over ranks"),
    ],
)
def test_what_contradicts_the_recipe_or_breaks_scores_is_refused_with_what_to_do(
    tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, f"{{config: {json.dumps(config)}}}")
    message = str(caught.value)
    assert "deepspeed.config: " in message and expected in message and "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name, expected in {"missing.json": "No such file", "broken.json": "is not JSON"}.items():
        with pytest.raises(RecipeError, match=expected) as caught:
            load(tmp_path, f"{{config: {name}}}")
        assert str(tmp_path / name) in str(caught.value)
