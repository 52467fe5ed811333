"""Records that cannot be read: they stop the run, or are left out, counted and, where the recipe says so, kept."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

import orjson

from fastmix_data.errors import InputError

Mode = Literal["fail", "skip", "quarantine"]
# Where most records are bad from the start, it is the recipe that is wrong, or the file.
_FIRST_RECORDS = 1000


class BadRecord(Exception):
    """A record cannot be read; with what is wrong and how to put it right."""

    def __init__(self, problem: str, remedy: str = "fix or remove it") -> None:
        """Keep the parts apart: only who reads the file knows its place."""
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy


@dataclass
class BadRecords:
    """What is done with the bad records of a partition.

    Attributes:
        mode: the recipe's `on_bad_record`.
        open_quarantine: opens the file that bad records are kept in, the first time there is one.
        num_seen: records so far, good and bad.
        num_bad: bad ones so far.
        first: place and fault of the first one.
        quarantine: the file, once it is open.
    """

    mode: Mode
    open_quarantine: Callable[[], BinaryIO] | None = None
    num_seen: int = 0
    num_bad: int = 0
    first: str = ""
    quarantine: BinaryIO | None = None

    def leave_out(self, error: BadRecord, *, file: str, locator: str, place: Callable[[], str], raw: Callable[[], bytes]) -> None:
        """Leave out a record that has been counted as seen.

        Args:
            place: file and line for an error; a function, because it may take counting lines.
            raw: the record's own bytes, for the quarantine.
        Raises:
            InputError: a bad record stops the run, or most of the first ones are bad.
        """
        if self.mode == "fail":
            remedy = f"{error.remedy}, or set on_bad_record: skip or quarantine"
            raise InputError(place(), error.problem, remedy) from error
        self.num_bad += 1
        self.first = self.first or f"{file}, {locator}: {error.problem}"
        if self.num_seen <= _FIRST_RECORDS < 2 * self.num_bad:
            problem = f"{self.num_bad} of the first {self.num_seen} records are bad, the first is {self.first}"
            raise InputError(file, problem, "name the key that holds its text, or take the file out")
        if self.mode == "quarantine" and self.open_quarantine is not None:
            self.quarantine = self.quarantine or self.open_quarantine()
            entry = {"file": file, "locator": locator, "reason": error.problem} | _kept(raw())
            self.quarantine.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))


def _kept(raw: bytes) -> dict[str, str]:
    """The bytes as text where they are, so that a reader sees them; else as base64, so that none is lost."""
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}
