"""`fastmix init DIR`: a commented recipe for the corpora found in a folder."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from fastmix_data.atomic_files import atomic_file
from fastmix_data.errors import FastmixError, RecipeError
from fastmix_data.git.pointers import may_be_pointer, require_no_pointer
from fastmix_data.messages import first_line, shown
from fastmix_data.recipe.recipe import SOURCE_NAME
from fastmix_data.units import format_count
from pipelines.guessed_fields import GuessedFields, guess_fields
from pipelines.inputs.files import InputFile
from pipelines.inputs.formats import READABLE, ending_of, format_of, remedy_for
from pipelines.inputs.json_layout import only_object
from pipelines.inputs.walk import FoundFile, find_all_files
from pipelines.reading.first_records import first_records

_VALID_WORDS = frozenset({"valid", "validation", "val", "dev", "test", "heldout"})
_TRAIN_WORDS = frozenset({"train", "training"})
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
_LONGEST_NAME = 48
# As many tokens a step either way. An example that is longer than a sequence is cut, so with examples they are longer.
_SEQUENCES = "  sequence_length: 128\n  global_batch: 32"
_EXAMPLE_SEQUENCES = (
    "  sequence_length: 512      # longer examples are cut, which is counted (on_long_example)\n  global_batch: 8"
)
_SKIPPED_LISTED = 20
# Of a source: its first file alone may be unlike the others.
_FILES_LOOKED_INTO, _RECORDS_LOOKED_AT = 4, 64


@dataclass(frozen=True)
class _Corpus:
    """A source to be: patterns are relative to the searched folder."""

    name: str
    files: tuple[str, ...]
    valid_files: tuple[str, ...]
    fields: GuessedFields
    num_files: int
    num_bytes: int


@dataclass(frozen=True)
class _NotUnderstood:
    path: str
    reason: str


def write_recipe(directory: Path, *, output: Path | None = None, force: bool = False) -> Path:
    """Write a recipe for the corpora of a folder.

    Args:
        directory: what is searched.
        output: the recipe to write; `recipe.yaml` in the folder when not given. Its paths are relative to where it is.
        force: overwrite a file.

    Raises:
        RecipeError: the file exists, or nothing usable was found.
    """
    path = output if output is not None else directory / "recipe.yaml"
    if path.exists() and not force:
        raise RecipeError(path, "exists already", "give another name with --out, or overwrite it with --force")
    text = propose_recipe(directory, relative_to=path.parent)
    with atomic_file(path) as file:
        file.write(text.encode())
    return path


def propose_recipe(directory: Path, *, relative_to: Path | None = None) -> str:
    """A commented recipe, as YAML that `load_recipe` accepts.

    Every folder that holds files of a format we read is a source; folders and files named train and valid are its splits. What is not
    understood is listed in a comment.

    Args:
        relative_to: folder that the recipe will lie in; the searched one when not given.

    Raises:
        RecipeError: there is no such folder, or nothing usable in it.
    """
    if not directory.is_dir():
        raise RecipeError(directory, "there is no such folder", "give the one that holds your corpora")
    corpora, skipped = _find_corpora(directory)
    if not corpora:
        first = f"for example {skipped[0].path}: {skipped[0].reason}" if skipped else "give a folder that has some"
        raise RecipeError(directory, f"no {READABLE} file with text in it or in its folders", first)
    prefix = Path(os.path.relpath(directory.resolve(), (relative_to or directory).resolve()))
    return _render(corpora, skipped, prefix=prefix)


def _find_corpora(directory: Path) -> tuple[list[_Corpus], list[_NotUnderstood]]:
    groups: dict[tuple[str, ...], list[Path]] = {}
    files, skipped = _list_files(directory)
    for path in files:
        groups.setdefault(_home(path), []).append(path)
    # A pattern must not match what it leaves out either.
    left_out = [Path(item.path) for item in skipped]
    corpora: list[_Corpus] = []
    taken: set[str] = set()
    for home, paths in groups.items():
        for label, members in _by_format(home, paths):
            corpus = _corpus(directory, label, members, taken=taken, everything=[*paths, *left_out])
            if isinstance(corpus, _NotUnderstood):
                skipped.append(corpus)
            else:
                corpora.append(corpus)
                taken.add(corpus.name.lower())
    return corpora, skipped


def _list_files(directory: Path) -> tuple[list[Path], list[_NotUnderstood]]:
    """Files that may be data, in a fixed order, and the others; relative to the folder."""
    found = find_all_files(str(directory), where="")
    skipped = [
        _NotUnderstood(os.path.relpath(path, directory), f"{error.what}; {error.remedy}") for path, error in found.problems
    ]
    files: list[Path] = []
    for file in sorted(found.each_once()[0], key=lambda file: file.path):
        path = Path(file.path).relative_to(directory)
        reason = _unusable(file)
        if reason is None:
            files.append(path)
        else:
            skipped.append(_NotUnderstood(path.as_posix(), reason))
    return files, skipped


def _unusable(file: FoundFile) -> str | None:
    """Why a file is no data, as far as its own looks tell."""
    kind = format_of(file.path)
    if kind is None:
        remedy = remedy_for(file.path)
        return f"not a format that fastmix reads{f'; {remedy}' if remedy.startswith('decompress') else ''}"
    if file.num_bytes == 0:
        return "empty"
    try:
        if may_be_pointer(file.num_bytes):
            require_no_pointer(file.path, where="", name="it")
        record = only_object(file.path, file.num_bytes) if kind == "json" else None
    except OSError as error:
        return f"cannot be read ({first_line(error)})"
    except FastmixError as error:
        return f"{error.what}; {error.remedy}"
    guess = guess_fields([record]) if record is not None else None
    # A single object with some odd text in it is more likely a description of the data than all of it.
    if isinstance(guess, str) or (guess is not None and not guess.by_name):
        return "one JSON object without a key of text that is known"
    return None


def _stem(path: Path) -> str:
    return path.name.removesuffix(ending_of(path.name))


def _home(relative: Path) -> tuple[str, ...]:
    """The folder that names a file's source: train/ and valid/ folders belong to the one above."""
    parts = relative.parent.parts
    while parts and parts[-1].lower() in _VALID_WORDS | _TRAIN_WORDS:
        parts = parts[:-1]
    return parts


def _is_valid(relative: Path) -> bool:
    if any(part.lower() in _VALID_WORDS for part in relative.parent.parts[-1:]):
        return True
    # The first or the last word only: `test-00.jsonl` and `wiki_valid.jsonl` are splits, `a_test_of_time.jsonl` is not. A text file
    # is one document, whose name is its title.
    words = [word for word in re.split(r"[^a-z]+", _stem(relative).lower()) if word]
    return bool(words) and not _VALID_WORDS.isdisjoint((words[0], words[-1])) and format_of(relative.name) != "txt"


def _by_format(home: tuple[str, ...], paths: list[Path]) -> Iterator[tuple[str, list[Path]]]:
    """A source per format of a folder; in the searched folder itself, one per file name without split and number."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        kind: str = format_of(path.name) or ""
        # Files that lie about in the searched folder rarely belong together; files in a folder of their own do.
        series = "" if home or kind == "txt" else _series(path)
        groups.setdefault((series, kind), []).append(path)
    several = len({kind for _, kind in groups}) > 1
    for (series, kind), members in groups.items():
        label = "_".join((*home, series) if series else home) or "corpus"
        yield (f"{label}_{kind.split('.')[0]}" if several and not series else label), members


def _series(path: Path) -> str:
    """A file's name without split and running number."""
    words = re.split(r"[^A-Za-z0-9]+", _stem(path))
    kept = [word for word in words if word.lower() not in _VALID_WORDS | _TRAIN_WORDS and not word.isdigit() and word != "of"]
    return "_".join(kept) or "corpus"


def _corpus(
    directory: Path, label: str, members: list[Path], *, taken: set[str], everything: list[Path]
) -> _Corpus | _NotUnderstood:
    # If all of it is called a test, it is a corpus of that name, not a split without another.
    train = [path for path in members if not _is_valid(path)] or members
    in_train = set(train)
    valid = [path for path in members if path not in in_train]
    in_valid = set(valid)
    fields = _fields_of([directory / path for path in train])
    if isinstance(fields, str):
        return _NotUnderstood(train[0].as_posix(), fields)
    return _Corpus(
        name=_unique_name(label, taken),
        files=_patterns(train, others=[path for path in everything if path not in in_train]),
        valid_files=_patterns(valid, others=[path for path in everything if path not in in_valid]),
        fields=fields,
        num_files=len(members),
        num_bytes=sum((directory / path).stat().st_size for path in members),
    )


def _unique_name(label: str, taken: set[str]) -> str:
    """`label` as a valid source name that no other source has, also where case does not count.

    >>> _unique_name("sft/größe 1", {"sft_gr_e_1"})
    'sft_gr_e_1_2'
    """
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", label).strip("_-")[:_LONGEST_NAME] or "source"
    name = base
    for number in itertools.count(2):
        if name.lower() not in taken:
            break
        name = f"{base[: _LONGEST_NAME - len(str(number)) - 1]}_{number}"
    assert SOURCE_NAME.match(name)
    return name


def _patterns(paths: list[Path], *, others: list[Path]) -> tuple[str, ...]:
    """Globs that match these files and none of `others`; where there is no such glob, and for single files, the files themselves."""
    patterns: list[str] = []
    alike = {(path.parent, ending_of(path.name)): None for path in paths}
    for parent, ending in alike:
        names = [path.name for path in paths if (path.parent, ending_of(path.name)) == (parent, ending)]
        folder = "" if parent == Path() else f"{_as_pattern(parent.as_posix())}/"
        pattern = f"{_as_pattern(_common_start(names))}*{ending}"
        rivals = any(path.parent == parent and fnmatch.fnmatchcase(path.name, pattern) for path in others)
        if len(names) == 1 or rivals:
            patterns += [f"{folder}{_as_pattern(name)}" for name in names]
        else:
            patterns.append(folder + pattern)
    return tuple(patterns)


def _as_pattern(name: str) -> str:
    """A pattern for a name alone; bytes that are not UTF-8, which no recipe can hold, match any letter."""
    return _NOT_UTF8.sub("?", glob.escape(name))


def _common_start(names: list[str]) -> str:
    """What all names start with, digits of a running number left out.

    >>> _common_start(["part-00.txt", "part-01.txt"])
    'part-'
    """
    pairs = zip(min(names), max(names), strict=False)
    return "".join(first for first, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)).rstrip("0123456789")


def _fields_of(paths: list[Path]) -> GuessedFields | str:
    """What to read of some files' records, judged by the first ones, or why nothing can be read."""
    if format_of(paths[0].name) == "txt":
        return GuessedFields({})
    records: list[dict[str, Any]] = []
    for path in paths[:_FILES_LOOKED_INTO]:
        kind = format_of(path.name)
        assert kind is not None
        try:
            records += first_records(
                InputFile(str(path), path.name, kind, path.stat().st_size, "", os.path.realpath(path)), _RECORDS_LOOKED_AT
            )
        except OSError as error:
            return f"cannot be read ({first_line(error)})"
        except FastmixError as error:
            return f"cannot be read ({error.what})"
    return guess_fields(records)


def _render(corpora: list[_Corpus], skipped: list[_NotUnderstood], *, prefix: Path) -> str:
    # A source that somebody has held files out of is more likely one to be measured on.
    target = next((corpus for corpus in corpora if corpus.valid_files), corpora[0])
    lines = [_source_line(corpus, prefix) for corpus in corpora]
    total = sum(corpus.num_bytes for corpus in corpora)
    template = Path(__file__).parent / "templates" / "init.yaml"
    return Template(template.read_text(encoding="utf-8")).substitute(
        folder=_one_line(shown(prefix.as_posix())) if prefix != Path() else "this folder",
        sources="\n".join(lines),
        skipped=_skipped_comment(skipped),
        target=_scalar(target.name),
        budget=format_count(max(1000, total / 4)),
        sequences=_EXAMPLE_SEQUENCES
        if any("text" not in corpus.fields.keys and corpus.fields.keys for corpus in corpora)
        else _SEQUENCES,
    )


class _RecipeDumper(yaml.SafeDumper):
    """Writes text of several lines as one quoted line, as templates are read best."""


def _quoted_lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_RecipeDumper.add_representer(str, _quoted_lines)


def _source_line(corpus: _Corpus, prefix: Path) -> str:
    section: dict[str, Any] = {"files": _placed(corpus.files, prefix)}
    if corpus.valid_files:
        section["valid_files"] = _placed(corpus.valid_files, prefix)
    section |= corpus.fields.keys
    flow = yaml.dump(
        section, Dumper=_RecipeDumper, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True
    ).strip()
    remark = f"; {_one_line(corpus.fields.remark)}" if corpus.fields.remark else ""
    size = f"{corpus.num_bytes / 1e6:.1f} MB" if corpus.num_bytes >= 1e5 else f"{corpus.num_bytes / 1e3:.1f} kB"
    plural = "s" if corpus.num_files > 1 else ""
    return f"  # {corpus.num_files} file{plural}, {size} on disk{remark}\n  {_scalar(corpus.name)}: {flow}"


def _placed(patterns: tuple[str, ...], prefix: Path) -> str | list[str]:
    placed = [_placed_one(pattern, prefix) for pattern in patterns]
    return placed[0] if len(placed) == 1 else placed


def _placed_one(pattern: str, prefix: Path) -> str:
    placed = (Path(_as_pattern(prefix.as_posix())) / pattern).as_posix()
    # At its start a tilde would be somebody's home.
    return f"./{placed}" if placed.startswith("~") else placed


def _scalar(name: str) -> str:
    """A name as YAML reads it back: quoted where it would be a number or a truth value."""
    return name if yaml.safe_load(name) == name else f'"{name}"'


def _skipped_comment(skipped: list[_NotUnderstood]) -> str:
    if not skipped:
        return ""
    lines = [f"#   {_one_line(shown(item.path))}: {_one_line(item.reason)}" for item in skipped[:_SKIPPED_LISTED]]
    if len(skipped) > _SKIPPED_LISTED:
        lines.append(f"#   and {len(skipped) - _SKIPPED_LISTED} more")
    return "\n# Not used, because not understood:\n" + "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
