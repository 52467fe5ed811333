"""Documents one by one, with whatever may be wrong with each; what the fast ways of the formats hand on to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from fastmix_data.arrow_arrays import labels, strings
from fastmix_data.recipe.fields import Field, Key
from fastmix_data.recipe.sources import TextSection
from pipelines.reading.bad_records import BadRecord, BadRecords
from pipelines.reading.bad_text import DocumentCounts, without_surrogates
from pipelines.reading.conversations import conversation_text
from pipelines.reading.record_fields import json_type, resolve_field


def column_names(section: TextSection) -> tuple[str, ...]:
    """Names of the text columns of a section's batches."""
    if section.messages is not None:
        return ("messages",)
    return ("prompt", "completion") if section.prompt is not None else ("text",)


@dataclass
class Reading:
    """A partition being read: what the recipe says of its records, and what was found so far."""

    section: TextSection
    counts: DocumentCounts
    bad_records: BadRecords

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """What is read of a record."""
        return self.section.fields

    @cached_property
    def plain_keys(self) -> tuple[str, ...] | None:
        """Keys of the record itself, if nothing else is read."""
        keys = [field.written for field in self.fields if isinstance(field, Key) and field.is_plain]
        return tuple(keys) if len(keys) == len(self.fields) and self.section.messages is None else None

    def texts_of(self, record: Any, *, nulls_are_absent: bool = False) -> list[str]:
        """A text for each column; the last one is empty if the record has nothing that carries loss.

        Raises:
            BadRecord: the record is no object, or does not hold what the recipe says.
        """
        if not isinstance(record, dict):
            keys = " and ".join(map(repr, self.section.text_keys))
            raise BadRecord(f"holds a JSON {json_type(record)}, not an object with the key {keys}")
        if self.section.messages is not None:
            (key,) = self.section.all_keys
            return [conversation_text(record, key, nulls_are_absent=nulls_are_absent)]
        return [resolve_field(record, field) for field in self.fields]


@dataclass
class Documents:
    """Documents of a batch to be.

    Attributes:
        columns: texts, a list for each text column.
        files, locators: where each is from.
    """

    reading: Reading
    columns: list[list[str]] = field(init=False)
    files: list[str] = field(default_factory=list)
    locators: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing yet."""
        self.columns = [[] for _ in column_names(self.reading.section)]

    def add(
        self,
        load: Callable[[], tuple[list[str], bool]],
        *,
        file: str,
        locator: str,
        raw: Callable[[], bytes],
        place: Callable[[], str] | None = None,
    ) -> None:
        """Add a document; an empty or bad one is left out and counted.

        Args:
            load: gives its texts, and whether something in them was replaced; or raises BadRecord.
            raw: its own bytes.
            place: names it in an error; file and locator do where not given.
        Raises:
            InputError: it is bad, and the recipe says to stop there.
        """
        counts, bad_records = self.reading.counts, self.reading.bad_records
        bad_records.num_seen += 1
        try:
            texts, was_replaced = load()
            cleaned = [without_surrogates(text, self.reading.section) for text in texts]
        except BadRecord as error:
            place = place or (lambda: f"{file}: {locator}")
            bad_records.leave_out(error, file=file, locator=locator, place=place, raw=raw)
            counts.num_bad_records += 1
            return
        # A completion without a prompt has loss, a prompt without a completion none.
        if not cleaned[-1][0]:
            counts.num_empty += 1
            return
        counts.num_bad_text += was_replaced or any(was_bad for _, was_bad in cleaned)
        for column, (text, _) in zip(self.columns, cleaned, strict=True):
            column.append(text)
        self.files.append(file)
        self.locators.append(locator)

    def batch(self) -> pa.RecordBatch:
        """All of them as a batch."""
        return text_batch(self.columns, files=self.files, locators=self.locators, section=self.reading.section)


def text_batch(
    columns: Sequence[Sequence[str]], *, files: Sequence[str], locators: Sequence[str], section: TextSection
) -> pa.RecordBatch:
    """A batch of documents that have text."""
    names = list(dict.fromkeys(files))
    number_of = {name: number for number, name in enumerate(names)}
    file_column = labels(names, np.fromiter(map(number_of.__getitem__, files), np.int32, len(files)))
    return pa.RecordBatch.from_arrays(
        [*map(strings, columns), file_column, strings(locators)], names=[*column_names(section), "file", "locator"]
    )
