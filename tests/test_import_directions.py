"""Arrows between packages go one way, and the foundations stay light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "fastmix_data": {"fastmix_data"},
    "train": {"fastmix_data", "train"},
    "pipelines": {"fastmix_data", "train", "pipelines"},
}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tops = {module.split(".")[0] for module in imported_modules(path)}
    assert tops & set(ALLOWED) <= ALLOWED[package]
    assert "tests" not in tops
    if package == "fastmix_data":
        assert not tops & {"dask", "distributed", "deepspeed", "transformers"}
        assert "torch" not in tops or path.name == "loader.py"
    if path.name != "engine.py":
        assert "deepspeed" not in tops


def test_package_files_hold_no_code() -> None:
    for package in ALLOWED:
        for path in (ROOT / package).rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign) for node in body), path


def test_modules_are_named_for_what_they_do() -> None:
    assert not {path.stem for path in FILES} & {"utils", "common", "core", "helpers", "manager", "misc"}
