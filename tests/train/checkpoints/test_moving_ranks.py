"""A proxy goes on from its checkpoint: bit for bit on the ranks it had, and alike on others and at another ZeRO stage."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving_ranks import SAVED_AT, Part, start_ranks, trained

from train.proxy.engine import process_group

Results = dict[Part, dict[str, Any]]
KINDS = [*((stage, "fp32") for stage in range(4)), (1, "bf16"), (3, "bf16")]

# On two ranks, with DeepSpeed's own configuration of this name too.
EXACT = [
    *((*kind, "") for kind in KINDS),
    *((3, "fp32", raw) for raw in ("all_offloaded", "in_node_groups")),
    (2, "fp32", "offloaded"),
]


def on_one(stage: int, precision: str) -> Part:
    return Part(stage, precision, name=f"one-{stage}-{precision}")


def on_two(stage: int, precision: str, raw: str = "", dropout: float = 0.0) -> Part:
    return Part(stage, precision, raw, dropout, name=f"two-{stage}-{precision}-{raw}-{dropout:g}")


def after(part: Part, stage: int) -> Part:
    return Part(stage, part.precision, part.raw, part.dropout, begins_from=part.name)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One rank trains and saves; two go on from that at the next stage, and train, save and go on by themselves; one goes on again."""
    folder = tmp_path_factory.mktemp("moving")
    with process_group(rank=0, world_size=1):
        found = {part: trained(part, folder) for part in (on_one(*kind) for kind in KINDS)}
        dropping = on_two(1, "fp32", dropout=0.3)
        parts = [part for kind in EXACT for part in (on_two(*kind), after(on_two(*kind), kind[0]))]
        parts += [after(on_one(*kind), (kind[0] + 1) % 4) for kind in KINDS]
        parts += [dropping, after(dropping, 1)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(start_ranks(parts, folder), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found |= dict(zip(parts, json.loads((folder / "results.json").read_text()), strict=True))
        # In a folder of its own a later part must not find what an earlier one left out.
        again = [after(on_two(*kind), (kind[0] + 3) % 4) for kind in KINDS]
        return found | {part: trained(part, folder) for part in again}


@pytest.mark.parametrize(("stage", "precision", "raw"), EXACT)
def test_on_the_ranks_it_had_it_ends_bit_for_bit_where_it_would_have(
    results: Results, stage: int, precision: str, raw: str
) -> None:
    whole, resumed = results[on_two(stage, precision, raw)], results[after(on_two(stage, precision, raw), stage)]
    assert resumed == {**whole, "began": SAVED_AT}


def test_dropout_goes_on_with_the_numbers_it_would_have_drawn(results: Results) -> None:
    dropping = on_two(1, "fp32", dropout=0.3)
    assert results[after(dropping, 1)] == {**results[dropping], "began": SAVED_AT}
    assert results[dropping]["logits"] != results[on_two(1, "fp32")]["logits"]


@pytest.mark.parametrize(("stage", "precision"), KINDS)
def test_on_another_number_of_ranks_and_at_another_stage_it_ends_alike(results: Results, stage: int, precision: str) -> None:
    # Float32 ends within the rounding of sums, bf16 within that of activations.
    tolerance = {"fp32": 2e-5, "bf16": 2e-2}[precision]
    for whole, resumed in (
        (results[on_one(stage, precision)], results[after(on_one(stage, precision), (stage + 1) % 4)]),
        (results[on_two(stage, precision)], results[after(on_two(stage, precision), (stage + 3) % 4)]),
    ):
        assert resumed["began"] == SAVED_AT
        assert np.allclose(resumed["logits"], whole["logits"], atol=tolerance)
        moments = np.array(whole["moments"])
        assert np.linalg.norm(np.array(resumed["moments"]) - moments) < tolerance * np.linalg.norm(moments)
