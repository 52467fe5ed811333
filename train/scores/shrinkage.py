"""How much of the spread of scores over sources is signal: what they are shrunk by.

Where no source differs from another by more than chance, as for a target as broad as the corpus, following scores only walks away from
the start. By the positive-part rule of James and Stein ("Estimation with quadratic loss", 1961), of differences that are F times as
large in the square as their noise alone would make them, max(0, 1 - 1/F) is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmix_data.arrays import Float64s

_TINY = 1e-300


def less_the_mixtures(alignment_K: Float64s, divisor_K: Float64s, *, importance_K: Float64s) -> Float64s:
    """Alignments of one batch less what the mixture's score would make of each source's tokens, so that what all sources share cancels.

    The mixture's score is sum_k f_k A_k / sum_k f_k D_k with f = p / q, weights over sampling shares: it needs no source to be present.
    """
    mixture = float(importance_K @ alignment_K) / max(float(importance_K @ divisor_K), _TINY)
    centred_K: Float64s = alignment_K - mixture * divisor_K
    return centred_K


class ScoreReliability:
    """Running sums over updates of each source's alignment less that of the mixture, and of its loss tokens."""

    def __init__(self, num_sources: int) -> None:
        """Start without evidence: nothing is reliable yet."""
        self._sums_5K = np.zeros((5, num_sources))

    def add(self, alignment_K: Float64s, divisor_K: Float64s, *, importance_K: Float64s) -> None:
        """Add what one update saw.

        Args:
            alignment_K, divisor_K: sums over the scored batch, reduced over ranks; 0 for an absent source.
            importance_K: weights over sampling shares.
        """
        centred_K = less_the_mixtures(alignment_K, divisor_K, importance_K=importance_K)
        # Moments are enough for the residuals around a score that is known only at the end: no history is kept.
        self._sums_5K += [centred_K, divisor_K, centred_K**2, centred_K * divisor_K, divisor_K**2]

    @property
    def value(self) -> float:
        """Share of the spread that is signal, in [0, 1]; 0 as long as no source was seen in two updates.

        With c_u the centred alignment and d_u the tokens of a source in update u, sum(c_u - r d_u)^2 at r = sum(c) / sum(d) has the
        expectation v (D - sum(d^2) / D), D = sum(d), for a variance of v per token; v is taken to be the same for all sources.
        """
        # Reliability is of differences between sources, so one source alone has none.
        seen_K = self._sums_5K[1] > 0
        if seen_K.sum() < 2:
            return 0.0
        centred_K, tokens_K, squares_K, products_K, token_squares_K = self._sums_5K[:, seen_K]
        score_K = centred_K / tokens_K
        # sum_u (c_u - r d_u)^2, multiplied out.
        residual = float((squares_K - 2 * score_K * products_K + score_K**2 * token_squares_K).sum())
        freedom = float((tokens_K - token_squares_K / tokens_K).sum())
        if freedom <= 0:
            return 0.0
        # The residual may cancel to below 0. K - 1: the mixture's score, taken off all, costs a degree of freedom.
        noise = max(residual, 0.0) / freedom * (len(score_K) - 1)
        signal = float((centred_K * score_K).sum())
        return max(0.0, 1 - noise / signal) if signal > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"sums": self._sums_5K.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._sums_5K = np.array(state["sums"])
