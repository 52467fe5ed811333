"""The post-training example, small: a base model of its own, question-answer sets, and one whose answers are shuffled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastmix_data.shards.catalog import load_catalog
from pipelines.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "post_training.py"
CORPUS = os.environ.get("FASTMIX_CORPUS", "")
SMALL = (
    "training.sequence_length=128",
    "training.token_budget=32K",
    "training.global_batch=8",
    "search.eval_sequences=4",
    "search.update_interval=2",
    "search.target_batch=8",
    "emit.token_budget=100K",
)


@pytest.mark.skipif(not CORPUS, reason="FASTMIX_CORPUS is not set")
def test_a_mixture_of_whole_examples_from_a_base_model(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(EXAMPLE),
        CORPUS,
        str(tmp_path),
        "--tokens",
        "16384",
        "--examples",
        "300",
        "--vocab-size",
        "512",
    ]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    settings = [part for override in SMALL for part in ("--set", override)]
    result = CliRunner().invoke(main, ["run", str(tmp_path / "post_training.yaml"), "--json", *settings])
    assert result.exit_code == 0, result.output
    mixture = json.loads(result.stdout)["mixture"]
    # The budget is too short for trials.
    assert mixture["trials"] is None and sum(mixture["weights"].values()) == pytest.approx(1)
    assert set(mixture["shares"]) == {"loss_tokens", "examples"} and "shuffled" in mixture["shares"]["examples"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "of loss tokens" in page and "of examples" in page
    catalog = load_catalog(tmp_path / "run" / "catalog.parquet")
    for row in catalog.rows:
        assert row.has_mask and row.num_documents and 0 < row.num_loss_tokens < row.num_labels
