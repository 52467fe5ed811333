"""What a law can do once it is fitted."""

from __future__ import annotations

from typing import Protocol

from fastmix_data.arrays import Float64s


class Law(Protocol):
    """The loss of one target as a function of the mixture."""

    def predict(self, weights_NK: Float64s) -> Float64s:
        """Losses of mixtures, shape (N,)."""
        ...


class SmoothLaw(Law, Protocol):
    """A law that is convex and has a gradient, so that its best mixture can be found."""

    def gradient(self, weights_K: Float64s) -> Float64s:
        """Derivatives of the loss by the weights, shape (K,)."""
        ...
