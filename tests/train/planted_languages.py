"""Sources that speak languages of disjoint vocabularies, targets that blend them, and the recipe to search for the blend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from planted_shards import BLOCK, training_and_search

ALPHABET, NUM_LANGUAGES = 120, 3
BLEND = (0.7, 0.2, 0.1)
OPTIMUM = (0.563, 0.295, 0.142)
SEQUENCE_LENGTH, GLOBAL_BATCH = 32, 16


def write_language(language: int, num_tokens: int, *, seed: int) -> np.ndarray:
    """Tokens of a Markov chain over an alphabet that no other language uses; about five likely successors per token."""
    logits_AA = 3 * np.random.default_rng(1 + language).normal(size=(ALPHABET, ALPHABET))
    logits_AA -= 0.5 * np.log(np.arange(1, ALPHABET + 1))
    cumulative_AA = (np.exp(logits_AA) / np.exp(logits_AA).sum(axis=1, keepdims=True)).cumsum(axis=1)
    uniform = np.random.default_rng(seed).random(num_tokens)
    tokens = np.zeros(num_tokens, np.int64)
    for i in range(1, num_tokens):
        tokens[i] = min(np.searchsorted(cumulative_AA[tokens[i - 1]], uniform[i]), ALPHABET - 1)
    return tokens + language * ALPHABET


def write_blend(shares: Sequence[float], *, num_blocks: int) -> np.ndarray:
    """Held-out blocks of the languages in these shares, in random order."""
    blocks = [
        write_language(k, BLOCK * round(num_blocks * share), seed=30 + k).reshape(-1, BLOCK) for k, share in enumerate(shares)
    ]
    return np.random.default_rng(0).permutation(np.concatenate(blocks)).reshape(-1)


def write_noise(num_tokens: int) -> np.ndarray:
    """Tokens of all languages without any order."""
    return np.random.default_rng(99).integers(0, NUM_LANGUAGES * ALPHABET, num_tokens)


def recipe(workdir: str, sources: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    proxy = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "tie_word_embeddings": False,
    }
    defaults = {
        "token_budget": GLOBAL_BATCH * SEQUENCE_LENGTH * 150,
        "sequence_length": SEQUENCE_LENGTH,
        "global_batch": GLOBAL_BATCH,
        "target_batch": 16,
        "learning_rate": 3e-3,
        "update_interval": 1,
        "eval_sequences": 16,
        # Scores alone have to find the answer here; counts would know it before the first step.
        "initial_weights": "uniform",
        # What production should read over a whole run is what the proxy read over its own: from the first update on.
        "average_fraction": 1.0,
    }
    return {
        "workdir": workdir,
        "tokenizer": {"bytes": True},
        "sources": {source: {"files": f"{source}.txt"} for source in sources},
        "shards": {"block_tokens": BLOCK},
        "target": {"files": {"blend": {"files": "blend.txt"}}},
        "proxy": {"config": proxy},
        **training_and_search({**defaults, **settings}),
        "emit": {"token_budget": 1000},
    }
