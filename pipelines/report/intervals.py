"""Intervals of means over a few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL = 0.9


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, float] | None:
    """Student's interval of the mean of independent values; None for fewer than two of them.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 4), round(high, 4)
    (0.3141, 3.6859)
    """
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(level, degrees=count - 1) * math.sqrt(variance / count)
    return mean - half, mean + half


def t_quantile(level: float, *, degrees: int) -> float:
    """The t with P(|T| <= t) = level for Student's distribution, by bisection.

    Args:
        level: probability, 0 <= level < 1.
        degrees: degrees of freedom, at least 1.

    >>> round(t_quantile(0.9, degrees=1), 4), round(t_quantile(0.9, degrees=2), 4)
    (6.3138, 2.92)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < level else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _central_probability(angle: float, degrees: int) -> float:
    """P(|T| <= tan(angle) * sqrt(degrees)), Abramowitz and Stegun 26.7.3 and 26.7.4."""
    odd = degrees % 2
    cosine, total = math.cos(angle), 0.0
    term = cosine if odd else 1.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
