from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from pipelines.cli.main import main


def test_a_plan_tells_memory_time_and_cost_and_starts_nothing(planted_recipe: Callable[..., Path]) -> None:
    recipe = planted_recipe()
    command = ["search", str(recipe), "--plan", "--gpu", "H100", "--price", "2.5", "--nproc", "8"]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0 and "memory of each of 8 ranks" in shown.stdout and "8 x H100 at 0.4% of its peak" in shown.stdout
    found = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert found["cost"] == found["device_hours"] * 2.5 == found["seconds"] * 8 / 3600 * 2.5
    whole, *sharded = ([found["memory"][str(stage)][part] for stage in (2, 3)] for part in ("parameters", "optimizer"))
    assert whole[0] >= 8 * whole[1] > 0 and sharded[0][0] == sharded[0][1]
    assert found["precision"] == "bf16"  # as the card runs it, whatever this machine does
    assert not (recipe.parent / "run" / "search").exists()
    refused = CliRunner().invoke(main, ["search", str(recipe), "--gpu", "H100"])
    assert refused.exit_code == 2 and "--gpu and --price go with --plan" in refused.output
    unknown = CliRunner().invoke(main, ["search", str(recipe), "--plan", "--gpu", "X100"])
    assert unknown.exit_code == 2 and "--gpu X100: is not in the table of peaks; A100" in unknown.output
