"""How large a source is, judged by a sample of its documents.

All documents are read, so the bytes of all texts are known exactly; the tokens are those bytes times what the sample makes of its own
(the ratio estimator: Cochran, "Sampling Techniques", 1977, chapter 6). Its variance is that of the residuals, tokens less ratio times
bytes, summed over groups of documents by hash.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from fastmix_data.arrays import Float64s
from fastmix_data.shards.sample import SizeEstimate
from pipelines.preprocess.sampling.thinning import SampleCount

_COVERED = 0.9


def estimate_size(count: SampleCount, *, fraction: float, padding: float = 0.0) -> SizeEstimate:
    """Training tokens of the whole source with a 90% interval.

    Args:
        fraction: share of the documents that is in the sample, by hash.
        padding: of windows of examples in the sample, as a share of all tokens. The whole fills its windows better, by what is not
            known: the interval reaches from none.

    >>> estimate_size(SampleCount(160, 6400, 256000.0, 80, 128000.0, [100] * 32, [20] * 32), fraction=0.5)
    SizeEstimate(fraction=0.5, num_tokens=1280, low=1280, high=1280)
    """
    bytes_G, tokens_G = np.array(count.bytes_G, np.float64), np.array(count.tokens_G, np.float64)
    sampled_bytes, sampled_tokens = float(bytes_G.sum()), float(tokens_G.sum())
    num_groups = min(len(bytes_G), count.num_sampled)
    if num_groups < 2 or not sampled_bytes:
        # One document says nothing of how others differ. No tokenizer makes more tokens than bytes, but for ends.
        most = max(count.num_text_bytes + 2 * count.num_documents, round(sampled_tokens))
        expected = count.num_text_bytes * sampled_tokens / sampled_bytes if sampled_bytes else 0
        return SizeEstimate(fraction, round(expected), round(sampled_tokens), most)
    scale = count.num_text_bytes / sampled_bytes
    half = scale * _half_width(tokens_G - sampled_tokens / sampled_bytes * bytes_G, count, fraction, num_groups=num_groups)
    tokens, filled = scale * sampled_tokens, 1 - padding
    low = max(tokens - half, sampled_tokens)
    return SizeEstimate(fraction, round(tokens / filled), math.floor(low), math.ceil((tokens + half) / filled))


def _half_width(residuals_G: Float64s, count: SampleCount, fraction: float, *, num_groups: int) -> float:
    """Half of the interval of the sample's own tokens, were it drawn again."""
    squares_G = residuals_G**2
    if not squares_G.any():
        return 0.0
    # Groups are as good as independent, and a document was left in with probability `fraction`.
    variance = (1 - fraction) * float(squares_G.sum()) * num_groups / (num_groups - 1)
    # Residuals grow with documents. A sample that happens to lack the large ones would look too sure, but how large all are is known.
    expected, sampled = fraction * count.squares, count.sampled_squares
    scale = count.num_text_bytes * fraction / sum(count.bytes_G)
    variance *= max(1.0, expected / sampled / scale**2)
    # Where a few groups are most of the variance it is no better known than from so few.
    freedom = min(num_groups, max(2.0, float(squares_G.sum() ** 2 / (squares_G**2).sum()))) - 1
    return float(stdtrit(freedom, (1 + _COVERED) / 2)) * math.sqrt(variance)
