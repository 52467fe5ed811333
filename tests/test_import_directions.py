"""The shape of the house: arrows of import go one way, folders and modules stay small, names of artefacts are spelled in one place.

Reads the sources and imports nothing.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "fastmix_data": {"fastmix_data"},
    "train": {"fastmix_data", "train"},
    "pipelines": {"fastmix_data", "train", "pipelines"},
}
# What each folder, or module beside the folders, may import of its own package. "." are all the modules that have no line here.
ARROWS = {
    "fastmix_data": {
        ".": "",
        "git": ".",
        "foreign": ".",
        "remote": ". foreign",
        "recipe": ". remote",
        "tokens": ". git",
        "shards": ". foreign remote",
        "results": ". recipe",
        "manifest": ". foreign remote recipe shards results",
        "exports": ". foreign recipe shards manifest",
        "audit": ". tokens foreign remote shards results manifest",
        "loading": ". manifest",
        "loader": ". remote shards manifest loading",
        "trainers": "loader",
    },
    "train": {
        "ranks": "",
        "checkpoints": "",
        "proxy": "checkpoints",
        "scores": "proxy",
        "mixture": "proxy scores",
        "memory": "proxy",
        "recording": "proxy",
        "side_by_side": "proxy",
        "target": "checkpoints proxy side_by_side scores mixture recording",
        "trials": "checkpoints proxy side_by_side scores mixture target",
        "search": "ranks checkpoints memory proxy scores mixture recording target trials",
        "baselines": "checkpoints proxy scores mixture target",
    },
    "pipelines": {
        "slurm": "",
        "cluster": "slurm",
        "console": "",
        "outlook": "",
        "inputs": "",
        "reading": "inputs",
        "rendering": "",
        "preprocess": "cluster inputs reading rendering",
        "report": "",
        "watch": "report",
        "compare": "cluster report",
        "export": "cluster",
        "fit": "",
        "guessed_fields": "reading",
        "init_recipe": "inputs reading guessed_fields",
        "demo": "inputs preprocess report compare init_recipe",
        "flow": "cluster preprocess report compare export demo",
        "cli": "slurm cluster console outlook preprocess report watch compare export fit demo init_recipe flow",
    },
}
LARGEST_FOLDER, LONGEST_MODULE = 14, 400  # modules, lines
# Files of a workdir, and those of its folders whose names are no plain words; the last test keeps the list complete.
ARTEFACTS = {
    "catalog.parquet", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "origin.json", "preprocess.recipe.json",
    ".preprocess.lock", "receipts", "mixture.json", "trajectory.parquet", "recipe.json", "trials.json", "reference.json",
    "checkpoints", ".lock", "compare.json", "compare.svg", "proxy.pt", "run.json", "losses.json", "likelihoods.json",
    "metrics.jsonl", "manifest.json", "parts.parquet", "report.html", "begun.json", "export.json", "sample.json", "plan.json",
}  # fmt: skip
WORKDIR = ROOT / "fastmix_data" / "workdir.py"
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from package.folder import module` names a module too; a name within one is cut off again by `place_of`.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place_of(package: str, parts: tuple[str, ...]) -> str:
    """The line of ARROWS that a module's path within its package belongs to."""
    first = parts[0].removesuffix(".py") if parts else "."
    return first if first in ARROWS[package] or (ROOT / package / first).is_dir() else "."


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_between_packages_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tops = {module.split(".")[0] for module in imported_modules(path)}
    assert tops & set(PACKAGES) <= PACKAGES[package]
    assert "tests" not in tops
    if package == "fastmix_data":
        assert not tops & {"dask", "distributed", "deepspeed", "transformers"}
        assert "torch" not in tops or "loading" in path.parts or path.name == "loader.py"
    if path.name != "engine.py":
        assert "deepspeed" not in tops


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_between_folders_follow_the_arrows(path: Path) -> None:
    package, *rest = path.relative_to(ROOT).parts
    here = place_of(package, tuple(rest))
    assert here in ARROWS[package] or path.name == "__init__.py", f"{name_of(path)}: no arrow is stated for it"
    used = {
        place_of(package, tuple(module.split(".")[1:])) for module in imported_modules(path) if module.split(".")[0] == package
    }
    wrong = used - {here, *ARROWS[package].get(here, "").split()}
    assert not wrong, f"{name_of(path)} is in {here}, which may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("package", ARROWS)
def test_the_stated_arrows_go_one_way(package: str) -> None:
    before: set[str] = set()
    for place, others in ARROWS[package].items():
        assert set(others.split()) <= before, f"{place} imports what stands after it"
        before.add(place)


def test_package_files_hold_no_code() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in TREES[path].body), path


def test_folders_and_modules_stay_small() -> None:
    modules = Counter(path.parent for path in FILES if path.name not in ("__init__.py", "__main__.py"))
    assert {name_of(folder): count for folder, count in modules.items() if count > LARGEST_FOLDER} == {}
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {name: count for name, count in lines.items() if count > LONGEST_MODULE} == {}


def test_modules_are_named_for_what_they_do() -> None:
    assert not {path.stem for path in FILES} & {"utils", "common", "core", "helpers", "manager", "misc"}


def test_errors_are_raised_in_parts() -> None:
    """Where, what and how to put it right: whoever collects errors, or puts them on a page, needs them apart."""
    errors = {node.name for node in ast.walk(TREES[ROOT / "fastmix_data" / "errors.py"]) if isinstance(node, ast.ClassDef)}
    whole = [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors
        if len(node.args) < 2 and not any(isinstance(argument, ast.Starred) for argument in node.args)
    ]
    assert not whole


def spelled_artefacts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Strings of which a piece of a path is an artefact's name. Sentences are none: whoever names a file to a reader may do so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            yield from ((node.lineno, piece) for piece in node.value.split("/") if piece in ARTEFACTS)


@pytest.mark.parametrize("path", [path for path in FILES if path != WORKDIR], ids=name_of)
def test_nobody_else_spells_a_path_of_a_workdir(path: Path) -> None:
    assert not list(spelled_artefacts(TREES[path])), f"{name_of(path)}: use fastmix_data.workdir"


def test_every_artefact_that_is_looked_for_is_spelled_in_workdir() -> None:
    assert {piece for _, piece in spelled_artefacts(TREES[WORKDIR])} == ARTEFACTS
