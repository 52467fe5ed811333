"""The real corpus: twelve sources in five formats, with a scarce one and a junk one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from installed_command import fastmix, installed_fastmix

CORPUS = os.environ.get("FASTMIX_CORPUS")
pytestmark = pytest.mark.skipif(not CORPUS, reason="FASTMIX_CORPUS does not name the corpus")


def write_recipe(folder: Path) -> Path:
    assert CORPUS
    described = json.loads((Path(CORPUS) / "sources.json").read_text())
    sources = {
        name: {
            split: [f"{CORPUS}/{pattern}" for pattern in entry[key]]
            for split, key in (("files", "train"), ("valid_files", "valid"))
        }
        for name, entry in described.items()
    }
    recipe = {
        "workdir": "run",
        "tokenizer": {"train": {"vocab_size": 2048, "sample_bytes": "4MB"}},
        "sources": sources,
        "target": {"sources": {"verse_en": 1, "classics_en": 1}},
        "proxy": {
            "config": {
                "model_type": "llama",
                "hidden_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 128,
            }
        },
        "training": {"token_budget": "300K", "sequence_length": 128, "global_batch": 16, "learning_rate": 5e-3},
        "search": {"eval_sequences": 32},
        "emit": {"token_budget": "20M", "max_epochs": 4},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def test_targets_gain_junk_loses_and_the_scarce_source_is_capped(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    result = json.loads(installed_fastmix("run", "recipe.yaml", "--json", cwd=tmp_path).stdout)
    weights, uniform = result["mixture"]["weights"], 1 / 12
    assert weights["junk"] < uniform < min(weights["verse_en"], weights["classics_en"])
    assert max(result["epochs"].values()) <= 4
    loss = result["mixture"]["target"]["loss"]
    assert loss["unseen_end"] < loss["unseen_start"] - 1
    assert "all as recorded" in fastmix("verify", "run", cwd=tmp_path).stdout
