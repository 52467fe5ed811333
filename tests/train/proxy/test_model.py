"""What a recipe's proxy comes to: a causal language model that can be built and run, or one line that says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.proxy import ProxySection
from train.proxy.causality import check_causal
from train.proxy.model import build_proxy, proxy_config

VOCABULARY = 300
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def made(section: ProxySection, base: Path = Path(), *, vocab_size: int | None = VOCABULARY) -> Any:
    config = proxy_config(section, base=base, vocab_size=vocab_size, sequence_length=32)
    model = build_proxy(section, config=config, base=base, seed=0)
    check_causal(model)
    return model


@pytest.mark.parametrize(
    ("model_type", "keys", "filled"),
    [
        ("qwen2", SMALL, {"num_key_value_heads": 4}),
        ("mistral", SMALL, {"num_key_value_heads": 4}),
        ("mistral", {**SMALL, "num_attention_heads": 16}, {"num_key_value_heads": 8}),  # the type's own fits
        ("gemma2", SMALL, {"num_key_value_heads": 4, "pad_token_id": 0}),
        ("phi3", {**SMALL, "num_key_value_heads": 2}, {"num_key_value_heads": 2, "pad_token_id": None}),
        ("bert", {**SMALL, "is_decoder": True}, {}),
    ],
)
def test_defaults_that_contradict_what_was_given_are_filled_in(
    model_type: str, keys: dict[str, Any], filled: dict[str, Any]
) -> None:
    config = made(ProxySection(config={"model_type": model_type, **keys})).config
    assert {name: getattr(config, name) for name in filled} == filled and config.vocab_size == VOCABULARY


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "t5"}, r"proxy\.config\.model_type: t5 is no causal language model"),
        ({"model_type": "bart"}, r"proxy\.config\.model_type: bart is no causal language model"),
        ({"model_type": "clip"}, r"proxy\.config\.model_type: clip is no causal language model"),
        ({"model_type": "lama"}, r"transformers has no model type 'lama'"),
        ({"model_type": "bert", **SMALL}, r"BertLMHeadModel is no causal language model: .*is_decoder: true"),
        ({"model_type": "electra", **SMALL}, r"ElectraForCausalLM is no causal language model"),
        ({"model_type": "llama", **SMALL, "hidden_size": 33, "num_attention_heads": 2}, r"33\) is not a multiple"),
        ({"model_type": "qwen2", **SMALL, "num_key_value_heads": 3}, r"transformers cannot run this Qwen2ForCausalLM"),
        ({"model_type": "llama", **SMALL, "hidden_size": "32"}, r"'hidden_size' expected int, got str"),
        ({"model_type": "llama", **SMALL, "num_hidden_layers": 0}, r"predicts from the last token alone; give it at least one"),
        ({"model_type": "llama", **SMALL, "num_attention_heads": 0}, r"proxy\.config: integer division or modulo by zero"),
        ({"model_type": "llama", **SMALL, "intermediate_size": -3}, r"transformers cannot build this llama .*-3"),
        ({"model_type": "llama", **SMALL, "hidden_act": "nope"}, r"transformers cannot build this llama \('nope'\)"),
        ({"model_type": "llama", **SMALL, "return_dict": False}, r"transformers cannot run this LlamaForCausalLM"),
        ({"model_type": "qwen2", "hidden_size": 2**17, "num_hidden_layers": 999}, r"parameters in float32 is larger than this"),
    ],
)
def test_what_is_no_causal_model_or_does_not_run_is_refused_in_one_line(
    keys: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        made(ProxySection(config=keys))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")


def test_logits_that_are_not_numbers_are_refused_and_the_check_leaves_no_trace() -> None:
    model = made(ProxySection(config={"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2})).train()
    state = torch.get_rng_state()
    check_causal(model)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    model.transformer.wte.weight.data[:] = float("nan")
    with pytest.raises(RecipeError, match="logits of this GPT2LMHeadModel are not finite"):
        check_causal(model)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=VOCABULARY, **SMALL)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("adapter", r"is an adapter, not a model; merge it first, with peft's merge_and_unload"),
        ("lacking", r"lacks weights of LlamaForCausalLM \(model\.norm\.weight\)"),
        ("cut", r"'model' cannot be loaded .*save it anew"),
        ("none", r"'model' cannot be loaded .*save it anew"),
        ("encoder", r"BertLMHeadModel is no causal language model|lacks weights"),
        ("folder", r"neither a folder with a transformers model nor a hub name"),
        ("vocabulary", r"its vocabulary has 300 tokens, the shards' tokenizer 4000; give the checkpoint's own tokenizer"),
    ],
)
def test_a_checkpoint_that_is_no_whole_model_is_refused(checkpoint: Path, damage: str, message: str) -> None:
    weights = checkpoint / "model.safetensors"
    match damage:
        case "adapter":
            (checkpoint / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        case "lacking":
            kept = {name: tensor for name, tensor in load_file(weights).items() if name != "model.norm.weight"}
            save_file(kept, weights, metadata={"format": "pt"})
        case "cut":
            os.truncate(weights, 2000)
        case "none":
            weights.unlink()
        case "encoder":
            AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", vocab_size=VOCABULARY, **SMALL)).save_pretrained(
                checkpoint
            )
        case "folder":
            (checkpoint / "config.json").unlink()
    section = ProxySection(checkpoint="model")
    with pytest.raises(RecipeError, match=message) as caught:
        made(section, checkpoint.parent, vocab_size=4000 if damage == "vocabulary" else VOCABULARY)
    assert "\n" not in str(caught.value)
