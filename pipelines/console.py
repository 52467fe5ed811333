"""What commands print: text for people on stderr and stdout, or one JSON object with --json."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for --help's sake nothing heavy is imported
    from fastmix_data.results.mixture import Mixture

_BAR_WIDTH = 24


class Console:
    """Prints a command's messages and its result.

    Messages go to stderr and the result to stdout, so that `--json` output can be piped.
    """

    def __init__(self, *, as_json: bool) -> None:
        """Choose JSON or text."""
        self.as_json = as_json

    def say(self, message: str) -> None:
        """Show a line about the work."""
        if not self.as_json:
            print(message, file=sys.stderr, flush=True)

    def result(self, content: Mapping[str, Any], text: str = "") -> None:
        """Show the outcome: `content` as JSON, or `text`."""
        if self.as_json:
            import orjson

            options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
            print(orjson.dumps(content, option=options, default=str).decode())
        elif text:
            print(text)


def mixture_table(mixture: Mixture, epochs: Mapping[str, float] | None = None) -> str:
    """Weights from large to small with what is known of their uncertainty, a bar and, after emit, how often each source is read.

    Columns of what the mixture does not say are left out.
    """
    weights, largest = mixture.weights, max(mixture.weights.values())
    width = max(len("source"), *(len(name) for name in weights))
    columns: list[tuple[str, dict[str, str]]] = [
        ("   share", {name: f"{weight:7.1%}" for name, weight in weights.items()}),
        ("90% interval", _interval_texts(mixture.interval)),
        ("another seed", _interval_texts(mixture.seed_interval)),
        ("signal/noise", {name: f"{ratio:12.1f}" for name, ratio in mixture.signal_to_noise.items()}),
        ("", {name: "█" * round(_BAR_WIDTH * weight / largest) for name, weight in weights.items()}),
        ("", {name: f"{times:.2f} epochs" for name, times in (epochs or {}).items()}),
    ]
    shown = [(title, texts, max(len(title), *map(len, texts.values()))) for title, texts in columns if texts]

    def line(first: str, cells: list[str]) -> str:
        padded = [f"{cell:<{size}}" for cell, (_, _, size) in zip(cells, shown, strict=True)]
        return "  ".join([f"  {first:<{width}}", *padded]).rstrip()

    heading = line("source", [title for title, _, _ in shown])
    names = sorted(weights, key=lambda name: -weights[name])
    return "\n".join([heading, *(line(name, [texts.get(name, "") for _, texts, _ in shown]) for name in names)])


def _interval_texts(interval: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    return {name: f"[{100 * low:5.1f} {100 * high:5.1f}]" for name, (low, high) in interval.items()}


def mixture_notes(mixture: Mixture) -> list[str]:
    """A line for each group of interchangeable sources, and one that says why the search ended."""
    notes = []
    for group in mixture.interchangeable:
        total = sum(mixture.weights[name] for name in group)
        notes.append(
            f"{', '.join(group[:-1])} and {group[-1]} are interchangeable: their scores cannot be told apart; only the sum of their "
            f"shares ({total:.1%}) is meaningful"
        )
    return [*notes, f"end of search: {mixture.stopped}"] if mixture.stopped else notes
