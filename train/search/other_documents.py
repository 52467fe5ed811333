"""How far the answer would move if the target were of other documents, as many: told before training, by halves of its documents.

Averaging over updates does not take this noise away: once every document was seen, another update sees them again. The count's best
mixture takes a second, so it is made for either half of the documents, halved in several balanced ways. The spread between halves is that
of the whole (balanced repeated replication), and stands for the search's own, which follows the same documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy.special import stdtrit

from fastmix_data.arrays import Float64s
from train.mixture.constraints import MixtureConstraints
from train.mixture.count import Count, counted_weights

_COVERED = 0.9


def document_width(count: Count, *, constraints: MixtureConstraints) -> Float64s:
    """Half the width, on the square roots of weights, of where the answer on other documents would lie in 90 of 100 cases, shape (K,).

    Square roots, because the noise of a share is then about the same for small and large ones. 1, which is all of it, where a target has
    a single document.

    Args:
        constraints: that the answer is within.
    """
    best = [counted_weights(count.of_half(number), constraints=constraints) for number in range(len(count.halves_SN))]
    if not best:
        return np.ones(len(count.labels_K))
    roots_SK = np.sqrt(best)
    # Either half has twice the variance of the whole, their difference four times.
    error_K = np.sqrt((((roots_SK[::2] - roots_SK[1::2]) / 2) ** 2).mean(axis=0))
    # A source that no half has any use for may be in use by other documents: it is as sure as the mixture is on average.
    error_K = np.maximum(error_K, np.sqrt((error_K**2).mean()))
    # This answer is as far from the truth as the other documents' would be: hence another root of 2.
    width_K: Float64s = float(stdtrit(len(best) // 2, (1 + _COVERED) / 2)) * sqrt(2) * error_K
    return width_K


def document_interval(
    weights_K: Float64s,
    *,
    width_K: Float64s,
    num_documents: Sequence[int],
    importance: Sequence[float],
    bounds: MixtureConstraints,
) -> tuple[Float64s, Float64s]:
    """Where the answer on other documents of the targets would lie in 90 of 100 cases, both of shape (K,).

    Halves cannot tell of a kind of document that is in neither. One that is p of all is missing from D of them with probability (1 - p)^D,
    so that up to p = 1 - 0.1^(1/D) of the mixture may be of a source that seems useless, or of others than the one that seems to be all.

    Args:
        width_K: of `document_width`.
        num_documents, importance: of each target; importance sums to 1.
        bounds: that no answer is beyond.
    """
    missing = sum(weight * (1 - (1 - _COVERED) ** (1 / count)) for count, weight in zip(num_documents, importance, strict=True))
    root_K = np.sqrt(weights_K)
    low_K = np.minimum(np.maximum(root_K - width_K, 0) ** 2, 1 - missing)
    high_K = np.maximum(np.minimum(root_K + width_K, 1) ** 2, missing)
    return (
        np.minimum(np.maximum(low_K, bounds.floor_K), weights_K),
        np.maximum(np.minimum(high_K, bounds.ceiling_K), weights_K),
    )


def combined(
    weights_K: Float64s, first: tuple[Float64s, Float64s], second: tuple[Float64s, Float64s]
) -> tuple[Float64s, Float64s]:
    """The interval of two independent noises, of each of which an interval around the weights is given.

    >>> low_K, high_K = combined(np.array([0.25]), (np.array([0.16]), np.array([0.36])), (np.array([0.25]), np.array([0.25])))
    >>> low_K.round(2).tolist(), high_K.round(2).tolist()
    ([0.16], [0.36])
    """
    root_K = np.sqrt(weights_K)
    below_K, above_K = (np.hypot(*(np.sqrt(ends[side]) - root_K for ends in (first, second))) for side in (0, 1))
    low_K, high_K = np.maximum(root_K - below_K, 0) ** 2, np.minimum(root_K + above_K, 1) ** 2
    return np.minimum(low_K, first[0]), np.maximum(high_K, first[1])  # not narrower by a rounding
