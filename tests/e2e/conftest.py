"""A tiny corpus, untouched and with its finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
from installed_command import fastmix, write_corpus


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("e2e")
    fastmix("run", write_corpus(folder), "--workers", 1, cwd=folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with a recipe and nothing done yet."""
    write_corpus(tmp_path)
    return tmp_path
