"""Bars and sparklines of block characters, with eighths of a character where a terminal's font has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"


def bar(share: float, *, width: int) -> str:
    """A share of the width as a bar, no longer than that.

    >>> bar(0.5, width=4), bar(0.3, width=4), bar(2, width=2)
    ('██', '█▎', '██')
    """
    eighths = round(8 * width * min(1.0, max(0.0, share)))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def sparkline(values: Sequence[float], *, width: int) -> str:
    """The course of some values, the mean of each of at most `width` equal stretches; what is not a number leaves a gap.

    The scale is that of all but the first tenth: a loss falls so far there that nothing could be told from what comes after it.

    >>> sparkline([3, 2, 1, float("nan"), 0], width=5), sparkline([], width=5)
    ('█▆▃ ▁', '')
    """
    count = len(values)
    width = min(width, count)
    stretches = [values[place * count // width : (place + 1) * count // width] for place in range(width)]
    finite = [[value for value in stretch if math.isfinite(value)] for stretch in stretches]
    means = [sum(stretch) / len(stretch) if stretch else None for stretch in finite]
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, high = min(known), max(known[len(known) // 10 :])
    step = (high - low) / (len(_HEIGHTS) - 1) or 1.0
    return "".join(" " if mean is None else _HEIGHTS[round((min(mean, high) - low) / step)] for mean in means)
