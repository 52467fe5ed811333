from __future__ import annotations

import numpy as np
import pytest

from pipelines.compare.table import mean_ranks


def test_ranks_are_averaged_over_seeds() -> None:
    losses = {"best": [1.0, 1.0, 2.0], "tied": [2.0, 3.0, 3.0], "last": [2.0, 4.0, 1.0]}
    assert mean_ranks(losses) == pytest.approx({"best": 4 / 3, "tied": (2.5 + 2 + 3) / 3, "last": (2.5 + 3 + 1) / 3})
    assert np.isclose(sum(mean_ranks(losses).values()), 6)
