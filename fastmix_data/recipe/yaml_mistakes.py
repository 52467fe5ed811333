"""What somebody who wrote a recipe by hand probably meant, where YAML's own message speaks of tokens and aliases."""

from __future__ import annotations

import re

import yaml

# What a value cannot begin with, unless it is YAML's own: a pattern like [ab]*.jsonl or @name needs quotes.
_SPECIAL = "*&!|>%@`[]{},"
_KEY = re.compile(r"[\w-]+:(?=\S)(?!//)")


def explain_yaml(error: yaml.YAMLError, text: str) -> tuple[str, str]:
    """Problem and remedy of YAML that cannot be read."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not valid YAML: {' '.join(str(error).split())}", "put that line right"
    problem = getattr(error, "problem", None) or "cannot be read"
    if getattr(error, "context", None) == "while scanning an alias" or "end of stream" in problem or "<stream end>" in problem:
        # The star itself and not what follows it; the bracket or quote that is not closed and not the end of the file.
        mark = getattr(error, "context_mark", None) or mark
    lines = text.splitlines() or [""]
    line = lines[min(mark.line, len(lines) - 1)]
    what, remedy = _likely(problem, line, mark.column, before=[line for line in lines[: mark.line] if line.strip()])
    return f"not valid YAML: line {mark.line + 1}: {what}", remedy


def _likely(problem: str, line: str, column: int, *, before: list[str]) -> tuple[str, str]:
    here, value = line[column:], _value_of(line)
    if "\t" in line[: column + 1]:
        return "there is a tab where YAML wants spaces", "put spaces in its place"
    # In a list within brackets a word of its own; else a letter of the value, as in [ab]*.jsonl.
    word = here if line[:column].rstrip().endswith(("[", ",")) else value
    if here[:1] == "*" or word[:1] == "*":
        return "YAML takes a * that is not in quotes for a reference", f"put the pattern in quotes: {_quoted(word)}"
    if "escape character" in problem:
        return "a backslash in double quotes begins an escape", "use single quotes"
    if "mapping values are not allowed" in problem:
        return _colon_or_indentation(line, before)
    if "sequence entries are not allowed" in problem:
        return "a list cannot begin behind its key", "write each entry on a line of its own, or all of them as [a, b]"
    if value[:1] and value[0] in _SPECIAL:
        remedy = f"put it in quotes: {_quoted(value)}"
        if value[0] in "[{":
            remedy = f"close the bracket, or put a text in quotes: {_quoted(value)}"
        return f"YAML gives a meaning of its own to a value that begins with {value[0]}", remedy
    if value[:1] and value[0] in "\"'":
        return (
            f"the quotes of {value} are not those of one whole text",
            "close them, or write '' for a quote within single quotes",
        )
    return problem, "put that line right"


def _colon_or_indentation(line: str, before: list[str]) -> tuple[str, str]:
    for candidate in (line, *before[-1:]):
        if match := _KEY.match(candidate.strip().removeprefix("- ")):
            key = match.group().rstrip(":")
            return (
                f"'{candidate.strip()}' has no space after its colon",
                f"write it as '{key}: {candidate.strip()[match.end() :]}'",
            )
    if ": " in _value_of(line):
        return "a value holds a colon and a space", f"put it in quotes: {_quoted(_value_of(line))}"
    return "a key is indented where none can be", "indent all keys of a section alike"


def _value_of(line: str) -> str:
    """What stands behind the key or the dash of a line."""
    return re.sub(r"^\s*(- +)*([\w-]+:\s+)?", "", line).strip()


def _quoted(value: str) -> str:
    word = value if value.startswith("[") else re.split(r",\s|,?$|\]$", value)[0]
    return "'" + word.strip().replace("'", "''") + "'"
