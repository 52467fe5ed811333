"""The command, as a process of its own or in this one, and a tiny corpus for it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result

from pipelines.cli.main import main

FASTMIX = shutil.which("fastmix", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}") or "fastmix"

PROSE = "the a house river walked slowly under old light of morning and she said nothing more to him"
CODE = "def return if else for in x y self.value ( ) : = + import None True yield lambda"
WORDS = {
    "prose": PROSE.split(),
    "code": CODE.split(),
    "noise": [f"{random.Random(i).getrandbits(48):x}" for i in range(400)],
}


def fastmix(*arguments: object, cwd: Path, code: int = 0) -> Result:
    """Run the command in this process, where modules are loaded already; its exit code must be `code`."""
    with contextlib.chdir(cwd):
        finished = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert finished.exit_code == code, finished.output
    return finished


def installed_fastmix(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the installed command as a user does; its exit code must be `code`."""
    return run_process([FASTMIX, *arguments], cwd=cwd, code=code)


def run_process(command: list[object], *, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with one thread; its exit code must be `code`."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    parts = [str(part) for part in command]
    finished = subprocess.run(parts, cwd=cwd, capture_output=True, text=True, timeout=300, env=variables)
    assert finished.returncode == code, finished.stderr[-3000:] + finished.stdout[-1000:]
    return finished


def write_corpus(folder: Path) -> None:
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
        "training": {"token_budget": "62K", "sequence_length": 32, "global_batch": 4, "learning_rate": 1e-2},
        "search": {"update_interval": 4, "eval_sequences": 8},
        "emit": {"token_budget": "30K"},
    }
    write_recipe(folder, recipe)


def read_recipe(folder: Path) -> dict[str, Any]:
    """The folder's recipe."""
    recipe: dict[str, Any] = yaml.safe_load((folder / "recipe.yaml").read_text())
    return recipe


def write_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Give the folder another recipe."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
