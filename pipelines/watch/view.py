"""The live view of a search, for a terminal of any size."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines.report.format import percent
from pipelines.watch.bars import bar, sparkline
from pipelines.watch.snapshot import Snapshot

_WIDE = 110  # columns from which the mixture and the rest stand side by side
_FEWEST_ROWS = 4
_FRAME, _HEADER = 2, 6  # lines of a panel's frame, and above all panels
_STILL = 0.0005  # a share that has moved by less is not said to move
_COLOURS = {"waiting": "yellow", "running": "cyan", "stopped": "yellow", "failed": "red", "finished": "green"}


def view(snapshot: Snapshot, *, width: int, height: int) -> RenderableType:
    """What fits into so many columns and lines; of the sources the largest, and the others in one row."""
    header, has_begun = _header(snapshot, width), snapshot.progress.begin is not None
    if not has_begun:
        return header
    is_wide = width >= _WIDE
    right_width = width * 2 // 5 if is_wide else width
    left_width = width - right_width if is_wide else width
    losses, trials = _losses(snapshot, right_width - 4), _trials(snapshot)
    taken = _HEADER + _FRAME + (0 if is_wide else sum(panel.row_count + _FRAME for panel in (losses, trials) if panel.row_count))
    mixture = _mixture(snapshot, left_width - 4, num_rows=max(_FEWEST_ROWS, height - taken))
    panels: list[RenderableType] = [
        Panel(table, title=title, title_align="left", box=ROUNDED, border_style="dim", width=wide)
        for table, title, wide in (
            (mixture, _mixture_title(snapshot), left_width),
            (losses, "losses, nats per token", right_width),
        )
        if table.row_count
    ]
    if trials.row_count:
        panels.append(Panel(trials, title="trials", title_align="left", box=ROUNDED, border_style="dim", width=right_width))
    if not is_wide or not panels:
        return Group(header, *panels)
    beside = Table.grid()
    beside.add_row(panels[0], Group(*panels[1:]))
    return Group(header, beside)


def _header(snapshot: Snapshot, width: int) -> RenderableType:
    colour = _COLOURS["finished" if snapshot.is_done else snapshot.progress.state]
    title = Text.assemble(("fastmix watch ", "bold"), (snapshot.title, "dim"), overflow="ellipsis", no_wrap=True)
    status = Text(snapshot.status, style=f"bold {colour}")
    if snapshot.progress.begin is None:
        return Group(title, status)
    filled = round(width * snapshot.progress.share_done)
    done = Text.assemble(("━" * filled, colour), ("━" * (width - filled), "grey23"))
    return Group(title, status, done, Text("\n".join(_packed(snapshot.facts, width))))


def _packed(facts: Sequence[str], width: int) -> list[str]:
    """Facts in lines, none of them broken."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + 3 + len(fact) <= width:
            lines[-1] += f" · {fact}"
        else:
            lines.append(fact)
    return lines


def _mixture_title(snapshot: Snapshot) -> str:
    if snapshot.is_done:
        return "mixture"
    return "mixture of the scores" if snapshot.progress.stage == "trials" else "mixture as it moves"


def _mixture(snapshot: Snapshot, width: int, *, num_rows: int) -> Table:
    shares = snapshot.shares if snapshot.progress.updates or snapshot.is_done else []
    shown = shares if len(shares) <= num_rows else shares[: num_rows - 1]
    rest = shares[len(shown) :]
    others = f"{len(rest)} others"
    name_width = min(max(len(others) if rest else 0, *(len(name) for name, _, _ in shown), 1), max(12, width // 3))
    bar_width = max(4, width - name_width - 18)
    largest = max([share for _, share, _ in shares], default=1.0)
    table = _grid("left", "left", "right", "left")
    for name, share, moved in shown:
        colour = "green" if moved > _STILL else "red" if moved < -_STILL else "dim"
        arrow = "▲" if moved > _STILL else "▼" if moved < -_STILL else " "
        change = f"{arrow}{100 * abs(moved):4.1f}" if arrow != " " else ""
        filled = bar(share / largest, width=bar_width)
        table.add_row(
            _cut(name, name_width), Text(filled.ljust(bar_width), "cyan"), percent(share), Text(change.ljust(6), colour)
        )
    if rest:
        share = sum(share for _, share, _ in rest)
        table.add_row(others, _cut("each less than these", bar_width), percent(share), "", style="dim")
    return table


def _losses(snapshot: Snapshot, width: int) -> Table:
    name_width = min(max([0, *(len(name) for name in snapshot.losses)]), width // 3)
    line_width = max(4, width - name_width - 9)
    table = _grid("left", "left", "right")
    for number, (name, values) in enumerate(snapshot.losses.items()):
        colour = "dim" if number == 0 else "magenta"
        drawn = sparkline(values, width=line_width)
        table.add_row(
            _cut(name, name_width), Text(drawn.ljust(line_width), colour), f"{values[-1]:.3f}" if isfinite(values[-1]) else ""
        )
    return table


def _trials(snapshot: Snapshot) -> Table:
    table = _grid("left", "right", "right", "right", "right")
    standings = snapshot.standings
    if standings:
        table.add_row(*(Text(head, "dim") for head in ("mixture", "trials", "last loss", "after", "best")))
    for number, one in enumerate(standings):
        likely = "" if one.probability is None else f"{one.probability:.0%}"
        row_style = "bold" if number == 0 and likely else ""
        table.add_row(one.name, str(len(one.losses)), f"{one.losses[-1]:.3f}", f"{one.num_steps} steps", likely, style=row_style)
    return table


def _grid(*justify: str) -> Table:
    table = Table.grid(padding=(0, 1), expand=False)
    for side in justify:
        table.add_column(justify="right" if side == "right" else "left", no_wrap=True, overflow="ellipsis")
    return table


def _cut(text: str, width: int) -> str:
    """A name that fits, with its beginning and its end: names of sources differ in either."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
