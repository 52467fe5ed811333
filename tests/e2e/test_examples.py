"""Every recipe of examples/ runs, at a small size, and does what it promises."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipelines.cli.main import main
from pipelines.demo.corpus import write_sample_corpus

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    "tokenizer.train.vocab_size=512",
    "training.token_budget=24K",
    "training.global_batch=8",
    "training.sequence_length=32",
    "search.eval_sequences=8",
    "search.update_interval=2",
    "search.target_batch=8",
    "proxy.config.hidden_size=16",
    "proxy.config.intermediate_size=32",
    "proxy.config.num_hidden_layers=1",
    "emit.token_budget=60K",
)
Check = Callable[[dict[str, Any]], bool]

# Large enough that the mixture stands still before the end; a production run long enough that topics reaches its two epochs.
MORE = {
    "stop": ("training.token_budget=100K", "search.stop.tolerance=0.3"),
    "repetition": ("emit.token_budget=2M",),
}

CHECKS: dict[str, Check] = {
    "bounds": lambda m: (
        min(m["weights"].values()) >= 0.03 - 1e-9
        and m["weights"]["docstrings"] <= 0.4 + 1e-9
        and m["weights"]["licences"] == 0.05
    ),
    "groups": lambda m: (
        m["weights"]["code"] + m["weights"]["headers"] <= 0.5 + 1e-9
        and m["weights"]["topics"] + m["weights"]["docstrings"] >= 0.3 - 1e-9
    ),
    "repetition": lambda m: m["binding"]["topics"] == "epoch cap",
    "targets": lambda m: set(m["target"]["losses"]) == {"docstrings", "packages"},
    "worst_case": lambda m: bool(m["target"]["worst"]) and set(m["target"]["weights"]) == {"topics", "code", "licences"},
    "not_worse_than": lambda m: set(m["target"]["limits"]) == {"docstrings", "code"},
    "stop": lambda m: "stood still" in m["search"]["stopped"] and m["search"]["num_tokens"] < 100_000,
    "seeds": lambda m: len(m["certainty"]["seed_weights"]) == 2 and set(m["certainty"]["seed_interval"]) == set(m["weights"]),
    "compare": lambda m: sum(m["weights"].values()) == pytest.approx(1),
}


def run(*arguments: object, overrides: tuple[str, ...] = SMALL) -> dict[str, Any]:
    """The command in this process, and the JSON it printed."""
    settings = [part for override in overrides for part in ("--set", override)]
    result = CliRunner().invoke(main, [*map(str, arguments), "--json", *settings])
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes beside a small demo corpus, which is preprocessed once; a run of every recipe starts from that."""
    folder = tmp_path_factory.mktemp("examples")
    write_sample_corpus(folder / "fastmix-demo", source_characters=200_000)
    for path in EXAMPLES.glob("*.yaml"):
        shutil.copy(path, folder)
    run("preprocess", folder / "bounds.yaml", "--workers", 1)
    done = folder / "fastmix-demo" / "runs" / "bounds"
    for path in EXAMPLES.glob("*.yaml"):
        if path.stem != "bounds":
            shutil.copytree(done, done.parent / path.stem, copy_function=os.link)
    return folder


def test_every_example_is_checked() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == {*CHECKS, "post_training"}  # which has a test of its own


@pytest.mark.parametrize("name", CHECKS)
def test_the_first_lines_of_an_example_give_its_command_and_the_readme_names_it(name: str) -> None:
    (command,) = re.findall(r"^#   fastmix (.+)$", (EXAMPLES / f"{name}.yaml").read_text(), re.MULTILINE)
    assert f"examples/{name}.yaml" in command
    subcommand = main.commands[command.split()[0]]
    subcommand.make_parser(click.Context(subcommand)).parse_args(command.split()[1:])  # every option of it exists
    assert f"({name}.yaml)" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("name", CHECKS)
def test_example_does_what_it_promises(folder: Path, name: str) -> None:
    recipe = folder / f"{name}.yaml"
    if name == "targets":  # its files are not in the shared catalog
        run("preprocess", recipe, "--workers", 1, "--replace")
    mixture = run("search", recipe, *(("--seeds", 2) if name == "seeds" else ()), overrides=(*SMALL, *MORE.get(name, ())))
    assert CHECKS[name](mixture), mixture
    if name == "compare":
        compared = run("compare", recipe, "--methods", "fastmix,uniform,regmix:3", "--seeds", 2, "--workers", 1)
        assert {len(method["target_loss"]) for method in compared["methods"].values()} == {2}
