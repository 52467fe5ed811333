"""Reading a recipe from YAML, with overrides, and explaining what is wrong with it in one line."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from fastmix_data.errors import RecipeError
from fastmix_data.messages import nearest, shown
from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.recipe.search import SearchSection
from fastmix_data.recipe.section import Section
from fastmix_data.recipe.training import TrainingSection
from fastmix_data.recipe.yaml_mistakes import explain_yaml

_NO_SPACE = re.compile(r"[\w-]+:\S")
# Keys of a search's section that it no longer has: what they set by hand, trials decide.
_GONE_FROM_SEARCH = frozenset(
    (
        *("exploration", "precondition", "score", "score_smoothing", "shrink_scores", "prior", "prior_strength"),
        *("weights_optimizer", "weights_learning_rate", "weights_warmup_steps"),
    )
)


class _KeyGivenTwice(Exception):
    """A mapping has a key twice; says where."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice instead of keeping the last one."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key is itself a mapping or a list", key_node.start_mark)
        if key in mapping:
            raise _KeyGivenTwice(f"line {key_node.start_mark.line + 1}: {key!r} is given twice")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides.

    Raises:
        RecipeError: the file cannot be read or is not a valid recipe; one line with the key, the value and the remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        name = nearest(path.name, (entry.name for entry in _siblings(path)))
        remedy = f"did you mean {path.parent / name}?" if name else "`fastmix init DIR` writes one"
        raise RecipeError(path, "there is no such recipe", remedy) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            path, f"cannot be read as a recipe ({error})", "give the YAML file that `fastmix init DIR` writes"
        ) from error
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise RecipeError(path, *explain_yaml(error, text)) from error
    except _KeyGivenTwice as error:
        raise RecipeError(path, str(error), "rename or remove one") from error
    if not isinstance(content, dict):
        raise RecipeError(path, "a recipe is a mapping of sections", "`fastmix init DIR` writes one to start from")
    for override in overrides:
        _apply_override(content, override)
    recipe = parse_recipe(content, name=str(path), base=path.parent).located(path.parent)
    workdir = shown(str(recipe.paths.root))
    if workdir != str(recipe.paths.root):
        raise RecipeError(
            f"{shown(str(path))}: workdir",
            f"the path {workdir} is not UTF-8, and the libraries that write there need that",
            "name another workdir, for example --set workdir=/tmp/run",
        )
    return recipe


def parse_recipe(content: Mapping[str, Any], *, name: str = "recipe", base: Path = Path()) -> Recipe:
    """Validate a recipe given as nested mappings.

    Args:
        name: starts the error message.
        base: folder that a file of DeepSpeed's configuration is looked for from; its content stands in its place afterwards.
    """
    unknown = _find_moved_keys(content) or _find_gone_keys(content) or _find_unknown_key(content, Recipe, ())
    if unknown is not None:
        raise RecipeError(f"{name}: {unknown.key}", unknown.problem, unknown.remedy)
    try:
        return Recipe.model_validate(content, context={"base": base})
    except ValidationError as error:
        where, what, remedy = _explain(error)
        raise RecipeError(f"{name}: {where}" if where else name, what, remedy) from error


def _siblings(path: Path) -> list[Path]:
    return [entry for entry in path.parent.iterdir() if entry.is_file()] if path.parent.is_dir() else []


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError(
            f"--set {override}", "has no value", "write it as --set section.key=value, for example --set training.seed=1"
        )
    *parents, last = key.split(".")
    section: Any = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {override}", f"{parent!r} is a value, not a section", "name a key of a section")
    try:
        section[last] = yaml.load(value, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, _KeyGivenTwice) as error:
        raise RecipeError(f"--set {override}", "the value is not valid YAML", "put it in quotes") from error


class _UnknownKey(NamedTuple):
    key: str
    problem: str
    remedy: str


def _find_moved_keys(content: Mapping[str, Any]) -> _UnknownKey | None:
    """Keys that lay elsewhere up to version 0.1: how any proxy is trained has a section of its own now."""
    places: dict[str, type[Section]] = {"search": SearchSection, "deepspeed": DeepspeedSection}
    given = {name: content[name] for name in places if isinstance(content.get(name), Mapping)}
    moved = {
        f"{name}.{key}": f"training.{key}"
        for name, section in given.items()
        for key in section
        if key in TrainingSection.model_fields and key not in places[name].model_fields
    }
    if not moved:
        return None
    is_one = len(moved) == 1
    remedy = f"write {'it' if is_one else 'them'} as {', '.join(moved.values())}"
    return _UnknownKey(", ".join(moved), "has moved" if is_one else "have moved", remedy)


def _find_gone_keys(content: Mapping[str, Any]) -> _UnknownKey | None:
    """Keys that searches no longer have."""
    search = content.get("search")
    gone = [f"search.{key}" for key in search if key in _GONE_FROM_SEARCH] if isinstance(search, Mapping) else []
    if not gone:
        return None
    is_one = len(gone) == 1
    remedy = f"leave {'it' if is_one else 'them'} out; search.method: paper is the rule as published"
    return _UnknownKey(", ".join(gone), "is gone, trials decide now" if is_one else "are gone, trials decide now", remedy)


def _find_unknown_key(content: Any, annotation: Any, path: tuple[str, ...]) -> _UnknownKey | None:
    """Walk mapping and model side by side; describe the first key the model does not have."""
    if isinstance(content, list):
        in_elements = (_find_unknown_key(value, _element(annotation), (*path, str(n))) for n, value in enumerate(content))
        return next(filter(None, in_elements), None)
    if not isinstance(content, Mapping):
        return None
    model, values = _model_and_mapping_value(annotation)
    for key, value in content.items():
        place = (*path, str(key))
        if model is not None and key not in model.model_fields:
            return _describe_unknown(place, list(model.model_fields))
        inner = values if model is None else model.model_fields[key].annotation
        if inner is not None and (found := _find_unknown_key(value, inner, place)):
            return found
    return None


def _describe_unknown(place: tuple[str, ...], known: list[str]) -> _UnknownKey:
    key = place[-1]
    likely = nearest(key, known, cutoff=0.0)
    return _UnknownKey(".".join(place), "unknown key", f"did you mean {likely!r}? `fastmix recipe --schema` lists all keys")


def _options(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)


def _element(annotation: Any) -> Any:
    """The type of a list's elements; None if none is allowed."""
    of_lists = (option for option in _options(annotation) if typing.get_origin(option) in (list, tuple))
    return next((typing.get_args(option)[0] for option in of_lists), None)


def _model_and_mapping_value(annotation: Any) -> tuple[type[BaseModel] | None, Any]:
    """The model that an annotation describes, or the type of a mapping's values."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option, None
        if typing.get_origin(option) is dict:
            return None, typing.get_args(option)[1]
    return None, None


def _explain(error: ValidationError) -> tuple[str, str, str]:
    """Key, problem and remedy of the first mistake. Our own validators write `problem; remedy`; pydantic's name only the problem."""
    details = error.errors(include_url=False)
    first = details[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    message, _, remedy = first["msg"].removeprefix("Value error, ").partition("; ")
    if first["type"] == "missing":
        message = "this key is required"
    elif first["type"] in ("model_type", "dict_type") and _NO_SPACE.match(str(first["input"])):
        message, remedy = f"{first['input']!r} has no space after its colon", "write the key, a colon, a space and the value"
    elif first["type"] == "string_type" and isinstance(first["input"], bool):
        message, remedy = f"YAML reads this name as {first['input']}", "put it in quotes"
    elif "input" in first and not isinstance(first["input"], Mapping | BaseModel) and first["type"] != "value_error":
        message += f"; got {first['input']!r}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return (where, message, remedy + more) if remedy else (where, message + more, remedy)
