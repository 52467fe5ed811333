"""The installed command, and a tiny corpus for it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

FASTMIX = shutil.which("fastmix", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}") or "fastmix"

WORDS = {
    "prose": [
        "the",
        "a",
        "house",
        "river",
        "walked",
        "slowly",
        "under",
        "old",
        "light",
        "of",
        "morning",
        "and",
        "she",
        "said",
        "nothing",
        "more",
        "to",
        "him",
    ],
    "code": [
        "def",
        "return",
        "if",
        "else",
        "for",
        "in",
        "x",
        "y",
        "self.value",
        "(",
        ")",
        ":",
        "=",
        "+",
        "import",
        "None",
        "True",
        "yield",
        "lambda",
    ],
    "noise": [f"{random.Random(i).getrandbits(48):x}" for i in range(400)],
}


def fastmix(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command; its exit code must be `code`."""
    finished = subprocess.run(
        [FASTMIX, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == code, finished.stderr[-3000:] + finished.stdout[-1000:]
    return finished


def write_corpus(folder: Path) -> Path:
    """Three sources of 150 documents and a recipe that takes a few seconds."""
    for name, words in WORDS.items():
        rng = random.Random(name)
        documents = [" ".join(rng.choice(words) for _ in range(120)) + f" {i}" for i in range(150)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    recipe = {
        "workdir": "run",
        "tokenizer": {"train": {"vocab_size": 512}},
        "sources": {name: {"files": f"{name}.jsonl"} for name in WORDS},
        "shards": {"block_tokens": 256, "valid_fraction": 0.1},
        "target": {"sources": {"prose": 1}},
        "proxy": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 48,
            }
        },
        "search": {
            "token_budget": "80K",
            "sequence_length": 64,
            "global_batch": 16,
            "update_interval": 4,
            "weights_warmup_steps": 8,
            "learning_rate": 1e-2,
            "eval_sequences": 8,
        },
        "emit": {"token_budget": "30K"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
