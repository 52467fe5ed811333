"""What is refused before any rank is started."""

from __future__ import annotations

import pytest

from fastmix_data.errors import FastmixError
from train.proxy.launch import check_gpus


def test_more_ranks_than_gpus_are_refused_with_the_number_that_can_be() -> None:
    check_gpus(2, num_gpus=2)
    with pytest.raises(FastmixError, match=r"--nproc 3.* has 2.*use --nproc 2"):
        check_gpus(3, num_gpus=2)
