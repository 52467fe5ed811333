"""What a comparison of methods found: each one's loss beside uniform's, seed by seed in pairs, and what its search cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from fastmix_data.results.comparison import REFERENCE, Comparison


@dataclass(frozen=True)
class MethodFigures:
    """A method's result.

    Attributes:
        mean_loss: target loss in nats per token, mean over the seeds.
        differences: loss less that of uniform with the same seed; empty without uniform, and for uniform itself.
        difference: their mean.
        interval: 90% Student interval of that mean; None for fewer than two seeds.
        gain_share: part of the attainable gain, which is what the best method compared gains over uniform; None where nothing is gained.
    """

    name: str
    mean_loss: float
    differences: tuple[float, ...]
    difference: float | None
    interval: tuple[float, float] | None
    gain_share: float | None
    search_tokens: int
    search_seconds: float
    search_flops: float


def method_figures(comparison: Comparison) -> list[MethodFigures]:
    """Figures of every method by rising mean loss.

    >>> from fastmix_data.results.comparison import ComparedMethod
    >>> loss = {"uniform": (4.2, 4.3), "regmix": (4.1, 4.25), "fastmix": (4.0, 4.1)}
    >>> found = method_figures(Comparison(methods={name: ComparedMethod(target_loss=values) for name, values in loss.items()}))
    >>> [(each.name, round(each.mean_loss, 3), each.gain_share and round(each.gain_share, 3)) for each in found]
    [('fastmix', 4.05, 1.0), ('regmix', 4.175, 0.375), ('uniform', 4.25, 0.0)]
    """
    means = {name: _mean(method.target_loss) for name, method in comparison.methods.items()}
    reference = comparison.methods.get(REFERENCE)
    attainable = means[REFERENCE] - min(means.values()) if reference is not None else 0.0
    found = []
    for name in sorted(means, key=lambda name: (means[name], name)):
        method = comparison.methods[name]
        # In pairs: proxies of one seed share their initial weights and their order of data, and most of the noise with them.
        pairs = zip(method.target_loss, reference.target_loss, strict=True) if reference is not None and name != REFERENCE else ()
        differences = tuple(loss - uniform for loss, uniform in pairs)
        found.append(
            MethodFigures(
                name=name,
                mean_loss=means[name],
                differences=differences,
                difference=_mean(differences) if differences else None,
                interval=mean_interval(differences),
                gain_share=(means[REFERENCE] - means[name]) / attainable if attainable > 0 else None,
                search_tokens=method.search_tokens,
                search_seconds=method.search_seconds,
                search_flops=method.search_flops,
            )
        )
    return found


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 90% interval of the mean of independent values; None for fewer than two of them.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 4), round(high, 4)
    (0.3141, 3.6859)
    """
    count = len(values)
    if count < 2:
        return None
    mean = _mean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    # By the quantile, for `t.interval` gives no number where all values are equal.
    half = float(stats.t.ppf(0.95, count - 1)) * math.sqrt(variance / count)
    return mean - half, mean + half


def _mean(values: Sequence[float]) -> float:
    # Exact up to the last rounding, so the order of the seeds cannot change which of two equal methods comes first.
    return math.fsum(values) / len(values)
