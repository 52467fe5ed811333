"""What is known of each source's score: evidence added up over updates, and the sources without any."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmix_data.arrays import Bools, Float64s

_TINY = 1e-30


class SourceScores:
    """What is known of each source's alignment <v, g_k> per loss token, as sums and counts.

    New evidence of a source fades its old evidence; a source without new evidence keeps its estimate.
    """

    def __init__(self, num_sources: int, *, smoothing: float) -> None:
        """Start without evidence.

        Args:
            smoothing: share of the old evidence kept when new evidence of the same source comes, in [0, 1).
        """
        self._smoothing = smoothing
        self._alignment_K = np.zeros(num_sources)
        self._num_tokens_K = np.zeros(num_sources)

    def add(self, alignment_K: Float64s, num_tokens_K: Float64s) -> None:
        """Add summed alignments and the loss tokens they were summed over, both of shape (K,), reduced over ranks."""
        # Fading by source and not by update: a source that no batch held has nothing newer to give way to.
        kept_K = np.where(num_tokens_K > 0, self._smoothing, 1.0)
        self._alignment_K = kept_K * self._alignment_K + alignment_K
        self._num_tokens_K = kept_K * self._num_tokens_K + num_tokens_K

    @property
    def seen_K(self) -> Bools:
        """Sources with any evidence."""
        return self._num_tokens_K > 0

    def estimates(self, weights_K: Float64s) -> Float64s:
        """Alignment per loss token of each source, shape (K,); one not seen yet has the others' mean, which moves it nowhere."""
        seen_K = self.seen_K
        # A ratio of sums: a mean of ratios would let an update that saw four tokens of a source count as one that saw a thousand.
        scores_K = self._alignment_K / np.maximum(self._num_tokens_K, _TINY)
        if seen_K.all() or not seen_K.any():
            return scores_K
        # Not 0: scores have no zero of their own, and 0 would move the mixture without evidence.
        mean = float(weights_K[seen_K] @ scores_K[seen_K] / weights_K[seen_K].sum())
        return np.where(seen_K, scores_K, mean)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"alignment": self._alignment_K.tolist(), "num_tokens": self._num_tokens_K.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._alignment_K, self._num_tokens_K = np.array(state["alignment"]), np.array(state["num_tokens"])
