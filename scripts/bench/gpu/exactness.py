"""Scores from one pass against a backward pass for each sequence, which are the definition: in float32, and what bf16 makes of them."""

from __future__ import annotations

from typing import Any

import torch
from planted import VOCABULARY, language
from row import ON_GPU, say
from separate_passes import expected_scores, probe_scores
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

BATCH, LENGTH = (16, 512) if ON_GPU else (4, 32)
WIDTH, LAYERS = (256, 4) if ON_GPU else (32, 1)  # heads of 64, which every fast path of attention takes
_SMALL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH // 32 // 2 or 1,
    "intermediate_size": 2 * WIDTH,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": _SMALL,
    "llama, tied": {**_SMALL, "tie_word_embeddings": True},
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": WIDTH // 32 // 2 or 1, "n_positions": LENGTH},
    "gpt_neox": _SMALL,
    "gemma": {**_SMALL, "num_key_value_heads": 1, "head_dim": min(64, WIDTH)},
}
FLOAT32_TOLERANCE, BF16_TOLERANCE = 1e-4, 0.1


def batch_of(languages: list[int], *, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels (B, T); sequences are of the languages in turn, so that their scores differ."""
    each = BATCH // len(languages)
    tokens = torch.cat([torch.from_numpy(language(number, each, seed=seed + number))[:, : LENGTH + 1] for number in languages])
    tokens = tokens.to(device)
    return tokens[:, :-1], tokens[:, 1:]


def compare(name: str, device: str) -> tuple[float, float]:
    """Largest error in float32 relative to the largest score; error of bf16 relative to the spread of the scores, root mean squares."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split(",")[0], vocab_size=VOCABULARY, **MODELS[name])
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).eval()
    for parameter in model.parameters():  # away from the symmetric start, where norms and biases hardly count
        parameter.data += 0.02 * torch.randn_like(parameter)
    target, batch = batch_of([0], seed=1, device=device), batch_of([0, 1], seed=5, device=device)
    expected_B = expected_scores(model, "all", target, batch)
    found_B = probe_scores(model, "all", target, batch)
    model.zero_grad()
    rounded_B = probe_scores(model.bfloat16(), "all", target, batch)
    error = (found_B - expected_B).abs().max() / expected_B.abs().max()
    noise = (rounded_B - expected_B).pow(2).mean().sqrt() / expected_B.std()
    return float(error), float(noise)


def main() -> None:
    assert not torch.backends.cuda.matmul.allow_tf32  # float32 is to be float32
    device = "cuda" if ON_GPU else "cpu"
    found = {name: compare(name, device) for name in MODELS}
    setting = f"{', '.join(f'{name}' for name in MODELS)}; {LAYERS} layers, width {WIDTH}, {BATCH} x {LENGTH}"
    for what, which, tolerance in (
        ("scores in float32 against separate backward passes, error / largest", 0, FLOAT32_TOLERANCE),
        ("scores in bf16 against those in float32, error / spread over sequences", 1, BF16_TOLERANCE),
    ):
        errors = {name: pair[which] for name, pair in found.items()}
        worst = max(errors, key=lambda name: errors[name])
        listed = ", ".join(f"{error:.1e}" for error in errors.values())
        say(what, setting, listed, wanted=f"below {tolerance:g}", ok=errors[worst] < tolerance)


if __name__ == "__main__":
    main()
