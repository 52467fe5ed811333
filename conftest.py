"""Doctests of the packages run with the tests: `pyproject.toml` asks for them, and this chooses the modules that have some."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent / "tests"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out modules without an example: importing all of them costs seconds, and importing a `__main__` runs it."""
    if collection_path.suffix != ".py" or collection_path.name == "conftest.py":
        return None
    if collection_path.is_relative_to(TESTS):
        return None if collection_path.name.startswith("test_") else True
    return None if ">>> " in collection_path.read_text(encoding="utf-8") else True
