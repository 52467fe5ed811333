"""Of ten intervals at least nine hold what they are about, whatever the documents are like."""

import numpy as np
import pytest

from pipelines.preprocess.sampling.estimate import estimate_size
from pipelines.preprocess.sampling.thinning import NUM_GROUPS, SampleCount, Thinning

NUM_DOCUMENTS, NUM_SEEDS = 8000, 300


def documents(kind):
    """Bytes, tokens and hashes of documents whose sizes differ a thousandfold."""
    rng = np.random.default_rng(7)
    num_bytes_D = np.maximum(20, rng.lognormal(7, 1.2, NUM_DOCUMENTS)).astype(np.int64)
    per_token_D = rng.normal(4, 0.6, NUM_DOCUMENTS).clip(2)
    if kind == "a tenth in another script":
        per_token_D[rng.random(NUM_DOCUMENTS) < 0.1] = 1.5
    num_tokens_D = (num_bytes_D / per_token_D).astype(np.int64) + 1
    hashes_D = rng.integers(0, 2**64, NUM_DOCUMENTS, np.uint64)
    if kind == "a third are copies":
        copied = rng.integers(0, NUM_DOCUMENTS // 20, NUM_DOCUMENTS // 3)
        for values_D in (num_bytes_D, num_tokens_D, hashes_D):
            values_D[-len(copied) :] = values_D[copied]
    return num_bytes_D, num_tokens_D, hashes_D


def estimate(num_bytes_D, num_tokens_D, hashes_D, *, thinning):
    ranks_D = thinning.ranks(hashes_D)
    in_sample_D, count = thinning.is_in(ranks_D, "train"), SampleCount()
    for part in np.array_split(np.arange(len(hashes_D)), 3):
        some, chosen = SampleCount(), part[in_sample_D[part]]
        some.add_documents(num_bytes_D[part], ranks_D[part], in_sample_D[part])
        some.add_tokens(ranks_D[chosen], num_tokens_D[chosen])
        count.add(some)
    return estimate_size(count, fraction=thinning.train)


@pytest.mark.parametrize("fraction", [0.005, 0.1])
@pytest.mark.parametrize("kind", ["alike", "a tenth in another script", "a third are copies"])
def test_nine_of_ten_intervals_hold_the_size_of_the_whole(kind, fraction):
    num_bytes_D, num_tokens_D, hashes_D = documents(kind)
    exact = num_tokens_D.sum()
    found = [
        estimate(num_bytes_D, num_tokens_D, hashes_D, thinning=Thinning(fraction, fraction, seed)) for seed in range(NUM_SEEDS)
    ]
    covered = np.mean([one.low <= exact <= one.high for one in found])
    # 300 seeds tell a coverage to 0.03 (90%).
    assert 0.87 <= covered <= 0.99
    assert abs(np.mean([one.num_tokens for one in found]) / exact - 1) < (0.03 if fraction < 0.1 else 0.01)


def test_one_document_gives_bounds_that_cannot_be_wrong_and_none_gives_nothing_to_go_by():
    groups = [0] * (NUM_GROUPS - 1)
    one = estimate_size(SampleCount(4, 400, 4e4, 1, 1e4, [100, *groups], [25, *groups]), fraction=0.25)
    assert (one.num_tokens, one.low, one.high) == (100, 25, 408)
    none = estimate_size(SampleCount(4, 400, 4e4), fraction=0.25)
    assert (none.low, none.high) == (0, 408)


def test_a_larger_sample_contains_a_smaller_one_and_copies_stay_together_whatever_the_source():
    hashes_D = np.random.default_rng(1).integers(0, 2**64, 20_000, np.uint64)
    sizes = []
    before_D = np.zeros(len(hashes_D), np.bool_)
    for fraction in (0.01, 0.1, 0.5, 1.0):
        thinning = Thinning(fraction, fraction / 2, 3)
        ranks_D = thinning.ranks(hashes_D)
        in_sample_D = thinning.is_in(ranks_D, "train")
        assert not (before_D & ~in_sample_D).any()
        assert not (thinning.is_in(ranks_D, "valid") & ~in_sample_D).any()
        before_D = in_sample_D
        sizes.append(in_sample_D.mean())
    assert np.allclose(sizes, (0.01, 0.1, 0.5, 1.0), atol=0.01)
    other = Thinning(0.1, 0.1, 4).ranks(hashes_D)
    assert (other != Thinning(0.1, 0.1, 3).ranks(hashes_D)).all()
