"""What a weight counts: tokens, tokens that carry loss, or examples. Inside, every mixture is one of tokens."""

from __future__ import annotations

from typing import Literal

from fastmix_data.arrays import Float64s

WeightUnit = Literal["tokens", "loss_tokens", "examples"]


def token_shares(weights_K: Float64s, *, per_token_K: Float64s) -> Float64s:
    """Shares of tokens that make up shares of another unit, shape (K,).

    Args:
        per_token_K: how many of the unit a token of each source is worth, positive, shape (K,).

    >>> import numpy as np
    >>> token_shares(np.array([0.5, 0.5]), per_token_K=np.array([0.01, 0.03]))  # examples of 100 tokens, and of 33
    array([0.75, 0.25])
    """
    tokens_K: Float64s = weights_K / per_token_K
    shares_K: Float64s = tokens_K / tokens_K.sum()
    return shares_K


def counted_shares(token_weights_K: Float64s, *, per_token_K: Float64s) -> Float64s:
    """The other way: what shares of tokens come to in another unit, shape (K,)."""
    counted_K: Float64s = token_weights_K * per_token_K
    shares_K: Float64s = counted_K / counted_K.sum()
    return shares_K
