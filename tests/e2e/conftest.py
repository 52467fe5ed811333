"""A tiny corpus, untouched and with its finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from installed_command import installed_fastmix, write_corpus


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run, made by the installed command; `printed.json` is all that it printed."""
    folder = tmp_path_factory.mktemp("e2e")
    write_corpus(folder)
    finished = installed_fastmix("run", "recipe.yaml", "--workers", 1, "--json", cwd=folder)
    assert finished.stderr == ""
    assert isinstance(json.loads(finished.stdout), dict)
    (folder / "printed.json").write_text(finished.stdout)
    return folder


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(finished_run, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with a recipe and nothing done yet."""
    write_corpus(tmp_path)
    return tmp_path
