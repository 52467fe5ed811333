"""Progress of long work: a rich bar when stderr is a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from fastmix_data.units import format_count

_SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Report `amount` more units done; `note` replaces the text behind the bar, `total` what the whole work is thought to be."""

    def __call__(self, amount: int, note: str = "", *, total: int | None = None) -> None:
        """Add to what is done."""
        ...


@contextmanager
def progress(description: str, *, total: int | None, unit: str = "tok", done: int = 0, quiet: bool = False) -> Iterator[Advance]:
    """Show how far a piece of work is, its rate and the time left, on stderr.

    Args:
        total: units of the whole work; None if unknown.
        done: units finished by an earlier run.
        quiet: show nothing (other ranks, --json).
    """
    if quiet:
        yield _silent
    elif sys.stderr.isatty():
        with _bar(description, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(description, total, unit, done)


def _silent(amount: int, note: str = "", *, total: int | None = None) -> None:
    del amount, note, total


@contextmanager
def _bar(description: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            whole = f"/{format_count(task.total)}" if task.total else ""
            rate = f"  {format_count(task.speed)} {unit}/s" if task.speed else ""
            return Text(f"{format_count(task.completed)}{whole} {unit}{rate}", style="progress.download")

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=30), Amount(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total, completed=done, note="")

        def advance(amount: int, note: str = "", *, total: int | None = None) -> None:
            changes: dict[str, Any] = {"note": note} if note else {}
            bars.update(task, advance=amount, total=total, **changes)

        yield advance


def _lines(description: str, total: int | None, unit: str, done: int) -> Advance:
    started = last = time.monotonic()
    completed, last_note, whole_work = done, "", total

    def advance(amount: int, note: str = "", *, total: int | None = None) -> None:
        nonlocal completed, last, last_note, whole_work
        completed += amount
        whole_work = total or whole_work
        last_note = note or last_note
        now = time.monotonic()
        # A note that comes after the end, with an amount of 0, does not show the last line again.
        finished = whole_work is not None and completed >= whole_work and amount > 0
        if now - last < _SECONDS_BETWEEN_LINES and not finished:
            return
        last = now
        rate = (completed - done) / max(now - started, 1e-9)
        left = f", {(whole_work - completed) / rate:.0f} s left" if whole_work and rate and not finished else ""
        whole = f" of {format_count(whole_work)}" if whole_work else ""
        text = f"{description}: {format_count(completed)}{whole} {unit}, {format_count(rate)} {unit}/s{left}"
        print(f"{text}  {last_note}".rstrip(), file=sys.stderr, flush=True)

    return advance
