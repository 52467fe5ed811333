"""What is proposed for records of the usual layouts, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from fastmix_data.recipe.sources import TextSection
from pipelines.guessed_fields import GuessedFields, guess_fields
from pipelines.reading.bad_records import BadRecords
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.documents import Reading

TURNS = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
SHAREGPT = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
SQUAD = {"id": "1", "context": "Paris is in France.", "question": "Where?", "answers": {"text": ["France"], "answer_start": [12]}}
ARC = {"id": "1", "question": "Which?", "choices": {"text": ["iron", "air"], "label": ["A", "B"]}, "answerKey": "A"}


def guessed(*records: dict[str, Any]) -> GuessedFields:
    found = guess_fields(records)
    assert isinstance(found, GuessedFields), found
    return found


def texts(keys: dict[str, str], record: dict[str, Any]) -> list[str]:
    return Reading(TextSection.model_validate(keys), DocumentCounts(), BadRecords("fail")).texts_of(record)


@pytest.mark.parametrize(
    ("record", "read"),
    [
        ({"text": "t"}, ["t"]),
        ({"question": "q", "answer": "a", "text": "q a"}, ["q", "a"]),
        ({"prompt": "q", "completion": "a"}, ["q", "a"]),
        ({"instruction": "do", "input": "", "output": "done"}, ["do", "done"]),
        ({"instruction": "do", "input": "this", "output": "done"}, ["do\nthis", "done"]),
        ({"instruction": "sum up", "context": "long ago", "response": "short"}, ["long ago\nsum up", "short"]),
        ({"system": "be kind", "question": "q", "response": "a"}, ["be kind\nq", "a"]),
        ({"question": "2 + 2?", "answer": 4}, ["2 + 2?", "4"]),
        ({"source": "cc", "url": "u", "text": "t", "score": 3}, ["t"]),
        ({"input": "q", "target": "a"}, ["q", "a"]),
        (SQUAD, ["Paris is in France.\nWhere?", "France"]),
        (ARC, ["Which?\nA. iron\nB. air", "A"]),
        ({"id": 1, "prompt": "q", "chosen": "good", "rejected": "bad"}, ["q", "good"]),
        ({"n": 1, "weird_key": "the only text"}, ["the only text"]),
        ({"meta": {"x": 1}, "content": "c", "title": "a longer title"}, ["c"]),
    ],
)
def test_usual_layouts_are_read_whole(record: dict[str, Any], read: list[str]) -> None:
    found = guessed(record)
    assert texts(found.keys, record) == read and "guess" not in found.remark


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"id": 7, "conversations": SHAREGPT, "text": "2 + 2? 4"},
        {"conversations": '[{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]'},
        {"dialogue_of_ours": TURNS},
        {"prompt": "2 + 2?", "chosen": TURNS, "rejected": TURNS[:1]},
    ],
)
def test_conversations_are_found_by_their_turns(record: dict[str, Any]) -> None:
    (conversation,) = texts(guessed(record).keys, record)
    assert conversation.index("2 + 2?") < conversation.index('"assistant"')


def test_a_first_record_without_text_does_not_decide() -> None:
    found = guessed({"text": None, "url": "u"}, {"text": "", "url": "u"}, {"text": "words", "url": "u"})
    assert found == GuessedFields({"text": "text"}, "not read: url")


def test_keys_that_only_some_records_have_are_read_where_they_are() -> None:
    records = [
        {"instruction": "do", "output": "done"},
        {"instruction": "do", "input": "this", "output": "done"},
        {"output": "alone"},
    ]
    keys = guessed(*records).keys
    assert [texts(keys, record) for record in records] == [["do", "done"], ["do\nthis", "done"], ["", "alone"]]


def test_a_guess_and_what_is_not_read_and_what_does_not_fit_are_said() -> None:
    assert guessed({"headline": "short", "story": "much longer"}).remark == "text is a guess; not read: headline"
    some = guessed({"text": "words"}, {"text": "more"}, {"text": ["a", "list"]})
    assert some.keys == {"text": "text"} and some.remark.startswith("1 of the first 3 records are not like that: 'text' holds")


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([], "no record at its start"),
        ([{"n": 1, "m": [2]}], "no key with text; its keys are n, m"),
        ([{"messages": [{"role": "user", "content": "no answer"}]}], "its keys are messages"),
    ],
)
def test_records_without_text_are_refused_with_the_reason(records: list[dict[str, Any]], reason: str) -> None:
    found = guess_fields(records)
    assert isinstance(found, str) and reason in found
