"""Tiny configurations of many of transformers' causal language models: what a user may write below `proxy.config`."""

from __future__ import annotations

from typing import Any

_DENSE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
_MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
_HEADS_OF_8 = {"head_dim": 8}

SCORED: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma2": _DENSE | _HEADS_OF_8,
    "gpt2": _GPT2,
    "gptj": _GPT2 | {"rotary_dim": 4},
    "llama": _DENSE,
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    "phi": _DENSE,
    "qwen3": _DENSE | _HEADS_OF_8,
}
# With the module that a refusal names.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "falcon_mamba": (_MAMBA, r"mixer\.conv1d and .*mixer\.dt_proj"),
    "gpt_oss": (_DENSE | _HEADS_OF_8 | {"num_local_experts": 4, "num_experts_per_tok": 2}, r"layers\.0\.self_attn"),
    "lfm2": (_DENSE | {"layer_types": ["conv", "full_attention"]}, r"conv\.conv"),
    "mamba": (_MAMBA, r"mixer\.conv1d and .*mixer\.dt_proj"),
    "mamba2": (_MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 2}, r"mixer\.conv1d"),
    "mixtral": (_DENSE | {"num_local_experts": 4}, r"layers\.0\.mlp\.gate"),
    "qwen2_moe": (_DENSE | _EXPERTS, r"layers\.0\.mlp\.gate"),
    "qwen3_next": (
        _DENSE
        | _HEADS_OF_8
        | _EXPERTS
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        r"linear_attn\.norm",
    ),
    "recurrent_gemma": (_DENSE | {"lru_width": 32, "num_hidden_layers": 3}, r"rg_lru .*forward-mode"),
}
