"""Drawing SVG by hand: scales, ticks, labels that do not collide, and a canvas whose colours come from a style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from fastmix_data.atomic_files import atomic_file

STYLE_SHEET = Path(__file__).parents[1] / "templates" / "plots.css"
# Nothing here can measure text: which font a browser takes is not known. So this is that of the widest usual one, at 12.5 px.
_CHARACTER_WIDTH = 7.7
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Pixel of a value; values beyond the ends land on them."""
        span = self.high - self.low or 1.0
        share = min(max((value - self.low) / span, 0.0), 1.0)
        return self.start + share * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale, about `count` of them; its lower end where floats are too coarse to divide it.

        >>> Scale(0, 1.1, 0, 100).ticks()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        """
        # Around 1e11 and a span of 1e-5 the next float lies beyond a tick: `number * step` would give one value many times over.
        rough = (self.high - self.low) / max(count, 1)
        if rough <= 1e-12 * max(abs(self.low), abs(self.high)) or not math.isfinite(rough):
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in _STEPS if factor * power >= rough * 0.999)
        # An end that is a tick itself must stay one, whichever way the division rounds: 0.3 / 0.1 is just under 3.
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def spread_labels(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, in their order, `gap` apart and within the bounds as far as they have room.

    >>> spread_labels([10, 11, 50], gap=10, low=0, high=100)
    [5.5, 15.5, 50.0]
    """
    # Pool adjacent violators, as in isotonic regression: labels that would overlap become one run, centred on the mean of what they want,
    # and a run that now overlaps the one before swallows it. That moves labels least, by the sum of squares.
    clusters: list[tuple[float, list[int]]] = []  # centre of a run of touching labels, and its members
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        members: list[int] = [index]
        while True:
            half = (len(members) - 1) * gap / 2
            centre = sum(wanted[member] for member in members) / len(members)
            # Into the bounds before the comparison: a run that is pushed inwards may come to overlap the one before it.
            centre = max(low + half, min(high - half, centre))
            if not clusters or clusters[-1][0] + (len(clusters[-1][1]) + len(members)) * gap / 2 <= centre:
                break
            members = clusters.pop()[1] + members
        clusters.append((centre, members))
    placed = [0.0] * len(wanted)
    for centre, members in clusters:
        for rank, member in enumerate(members):
            placed[member] = centre + (rank - (len(members) - 1) / 2) * gap
    return placed


def shorten(name: str, longest: int) -> str:
    """A name cut in its middle to at most `longest` characters.

    >>> shorten("common_crawl_2024_german", 12)
    'common…erman'
    """
    if len(name) <= longest:
        return name
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def text_width(text: str) -> float:
    """Rough width of a label in pixels."""
    return len(text) * _CHARACTER_WIDTH


def path_of(points: Sequence[tuple[float, float]], *, close: bool = False) -> str:
    """The `d` attribute of a polyline."""
    # More digits than a tenth of a pixel are sent and never seen.
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) + ("Z" if close else "")


@dataclass
class Canvas:
    """A picture under construction; coordinates are pixels from the top left corner."""

    width: float
    height: float
    title: str
    _parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, css: str = "", *, anchor: str = "start", tip: str = "") -> None:
        """Write a line of text; `y` is its vertical middle."""
        # 4 pixels below the middle stands the baseline of 12 px text; `dominant-baseline` is not read alike by all programs.
        inner = escape(text) + (f"<title>{escape(tip)}</title>" if tip else "")
        place = f' text-anchor="{anchor}"' if anchor != "start" else ""
        self._parts.append(f'<text x="{x:.1f}" y="{y + 4:.1f}"{_class(css)}{place}>{inner}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str, *, tip: str = "") -> None:
        """Draw a straight line."""
        self._parts.append(_with_tip("line", f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{_class(css)}', tip))

    def rect(self, x: float, y: float, width: float, height: float, css: str, *, tip: str = "") -> None:
        """Draw a box; one that would be too thin to see is made half a pixel wide."""
        size = f'width="{max(width, 0.5):.1f}" height="{height:.1f}"'
        self._parts.append(_with_tip("rect", f'x="{x:.1f}" y="{y:.1f}" {size} rx="1.5"{_class(css)}', tip))

    def circle(self, x: float, y: float, radius: float, css: str, *, tip: str = "") -> None:
        """Draw a dot."""
        self._parts.append(_with_tip("circle", f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"{_class(css)}', tip))

    def path(self, points: Sequence[tuple[float, float]], css: str, *, close: bool = False, tip: str = "") -> None:
        """Draw a polyline or, closed, an area."""
        self._parts.append(_with_tip("path", f'd="{path_of(points, close=close)}"{_class(css)}', tip))

    @contextmanager
    def group(self, name: str) -> Iterator[None]:
        """Hold together what belongs to one source, so that pointing at it can bring it out everywhere."""
        self._parts.append(f'<g data-source="{escape(name)}">')
        yield
        self._parts.append("</g>")

    def inline(self) -> str:
        """The picture as part of an HTML page, which has the style sheet."""
        return (
            f'<svg class="fm" viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.title)}">'
            f"{''.join(self._parts)}</svg>"
        )

    def save(self, path: Path) -> None:
        """Write the picture as a file of its own, with its style sheet."""
        box = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="fm" {box} role="img" aria-label="{escape(self.title)}">',
            f"<style>{STYLE_SHEET.read_text()}</style>",
            '<rect class="paper" width="100%" height="100%"/>',
            *self._parts,
            "</svg>\n",
        ]
        with atomic_file(path) as file:
            file.write("\n".join(parts).encode())


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


def _with_tip(tag: str, attributes: str, tip: str) -> str:
    return f"<{tag} {attributes}><title>{escape(tip)}</title></{tag}>" if tip else f"<{tag} {attributes}/>"
