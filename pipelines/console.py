"""What commands print: text for people on stderr and stdout, or one JSON object with --json."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

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


def mixture_table(
    weights: Mapping[str, float], interval: Mapping[str, tuple[float, float]], epochs: Mapping[str, float] | None = None
) -> str:
    """Weights from large to small with their intervals, a bar and, after emit, how often each source is read."""
    width = max(len(name) for name in weights)
    largest = max(weights.values())
    lines = []
    for name, weight in sorted(weights.items(), key=lambda item: -item[1]):
        bar = "█" * round(_BAR_WIDTH * weight / largest) if largest else ""
        low_high = f"[{100 * interval[name][0]:5.1f} {100 * interval[name][1]:5.1f}]" if name in interval else ""
        times = f"  {epochs[name]:.2f} epochs" if epochs else ""
        lines.append(f"  {name:<{width}}  {100 * weight:5.1f}%  {low_high}  {bar:<{_BAR_WIDTH}}{times}".rstrip())
    return "\n".join(lines)
