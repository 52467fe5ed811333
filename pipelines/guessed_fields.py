"""Which keys of a file's records hold its text, its questions and answers, or its conversations: what `fastmix init` proposes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmix_data.messages import and_more
from fastmix_data.recipe.fields import parse_key
from fastmix_data.recipe.sources import TextSection
from pipelines.reading.bad_records import BadRecord, BadRecords
from pipelines.reading.bad_text import DocumentCounts
from pipelines.reading.documents import Reading
from pipelines.reading.record_fields import look_up

Records = Sequence[Mapping[str, Any]]
# Names in the order in which they are believed.
_TEXT_KEYS = ("text", "content", "body", "document", "raw_content", "article", "code", "markdown")
_CONVERSATION_KEYS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "chat", "chosen")
_ANSWERS = (
    "completion", "output", "response", "answer", "answers.text[0]", "answers[0].text", "answers[0]", "answers", "solution", "answerKey",
    "chosen",
)  # fmt: skip
_PAIRS = {
    **dict.fromkeys(("instruction", "question", "prompt", "query", "problem"), _ANSWERS),
    "input": ("output", "response", "target"),
    "inputs": ("targets",),
    "source": ("target",),
}
# What stands before a question, and what after it.
_BEFORE, _AFTER = ("system", "system_prompt", "context", "passage", "background"), ("input",)
_OPTIONS = (
    ("choices.label[*]", "choices.text[*]"),
    ("options[*].label", "options[*].text"),
    (None, "choices[*]"),
    (None, "options[*]"),
)
# Of the chosen text's length: below it a key is more likely a name, an address or a date than text.
_WORTH_A_REMARK = 0.05
_PARTS_OF_A_TURN = ({"role", "content"}, {"from", "value"})


@dataclass(frozen=True)
class GuessedFields:
    """What a recipe would say of a source.

    Attributes:
        keys: of the source's section: text, or prompt and completion, or messages.
        remark: what is a guess and what is not read; empty if the names leave no doubt.
        by_name: whether the names of keys say that they hold text.
    """

    keys: dict[str, str]
    remark: str = ""
    by_name: bool = True


def guess_fields(records: Records) -> GuessedFields | str:
    """What to read of records like these, or why nothing of them can be read.

    The proposal has been tried on the records, so what it says can be read.
    """
    if not records:
        return "no record at its start"
    problems: list[str] = []
    for keys, by_name in _candidates(records):
        bad, num_empty = _try(keys, records)
        if len(bad) + num_empty == len(records):
            problems += bad[:1]
            continue
        unread = _unread(keys, records)
        # The only text there is is no guess, whatever its name.
        remarks = ["text is a guess"] if not by_name and unread else []
        remarks += [f"not read: {and_more(unread)}"] if unread else []
        remarks += (
            [f"{len(bad)} of the first {len(records)} records are not like that: {bad[0]}; see on_bad_record"] if bad else []
        )
        return GuessedFields(keys, "; ".join(remarks), by_name)
    listed = ", ".join(dict.fromkeys(key for record in records for key in record)) or "none"
    return f"no key with text; its keys are {listed}" + (f" ({problems[0]})" if problems else "")


def _candidates(records: Records) -> Iterator[tuple[dict[str, str], bool]]:
    """Proposals, the likeliest first, and whether the names of their keys say that they hold text."""
    for key in _by_belief(_CONVERSATION_KEYS, [key for key in _all_keys(records) if _is_conversation(records, key)]):
        yield {"messages": key}, True
    # A pair comes before `text`: with one beside it, that is usually the two put together.
    pairs = ((question, answer) for question, answers in _PAIRS.items() for answer in answers)
    for question, answer in pairs:
        if _has_text(records, question) and _has_text(records, answer, or_number=True):
            yield {"prompt": _prompt(records, question, answer), "completion": _as_field(records, answer)}, True
    texts = [key for key in _all_keys(records) if _has_text(records, key)]
    named = [key for key in _TEXT_KEYS if key in texts]
    if named:
        yield {"text": _as_field(records, named[0])}, True
    for key in sorted(texts, key=lambda key: -_length(records, key)):
        yield {"text": _as_field(records, key)}, False


def _prompt(records: Records, question: str, answer: str) -> str:
    """The question with what belongs to it: a passage before, an input and options after."""
    before = [key for key in _BEFORE if key != answer and _has_text(records, key)]
    after = [key for key in _AFTER if key not in (question, answer) and _has_text(records, key)]
    options = next(([part for part in pair if part] for pair in _OPTIONS if _has_list(records, *pair)), [])
    if not (before or after or options):
        return _as_field(records, question)
    lines = [_in_braces(records, key) for key in (*before, question, *after)]
    return "\n".join([*lines, ". ".join(f"{{{part}}}" for part in options)] if options else lines)


def _in_braces(records: Records, key: str) -> str:
    return f"{{{key}{'' if _is_everywhere(records, key) else '?'}}}"


def _as_field(records: Records, key: str) -> str:
    """The key as it is, or as a template, which takes numbers too, and records that lack it."""
    has_numbers = any(isinstance(_value(record, key), int | float) for record in records)
    return key if _is_everywhere(records, key) and not has_numbers else _in_braces(records, key)


def _try(keys: Mapping[str, str], records: Records) -> tuple[list[str], int]:
    """What is wrong with each record that these keys do not fit, and how many have no text under them."""
    reading = Reading(TextSection.model_validate(keys), DocumentCounts(), BadRecords("fail"))
    bad: list[str] = []
    num_empty = 0
    for record in records:
        try:
            num_empty += not reading.texts_of(record, nulls_are_absent=True)[-1]
        except BadRecord as error:
            bad.append(error.problem)
    return bad, num_empty


def _unread(keys: Mapping[str, str], records: Records) -> list[str]:
    """Other keys with text of a length that matters."""
    if "messages" in keys:
        return []
    section = TextSection.model_validate(keys)
    read = {key.top for key in section.all_keys}
    longest = max((_length(records, key.written) for key in section.all_keys), default=0.0)
    other = [key for key in _all_keys(records) if key not in read and _length(records, key) > _WORTH_A_REMARK * longest]
    # A text beside a pair is the two put together.
    return [key for key in other if not ("prompt" in keys and key == "text")]


def _all_keys(records: Records) -> list[str]:
    return list(dict.fromkeys(str(key) for record in records for key in record))


def _by_belief(names: Sequence[str], keys: Sequence[str]) -> list[str]:
    return sorted(keys, key=lambda key: names.index(key) if key in names else len(names))


def _value(record: Mapping[str, Any], key: str) -> Any:
    """What lies under a key or path; None where it does not lead anywhere."""
    try:
        return look_up(record, parse_key(key))
    except (BadRecord, ValueError):
        return None


def _has_text(records: Records, key: str, *, or_number: bool = False) -> bool:
    """Whether some record has text under a key."""
    values = [_value(record, key) for record in records]
    kinds = str | int | float if or_number else str
    return any(isinstance(value, kinds) and not isinstance(value, bool) and value != "" for value in values)


def _has_list(records: Records, *keys: str | None) -> bool:
    """Whether records have lists of text of equal length under these keys."""
    lists = [[_value(record, key) for key in keys if key is not None] for record in records]
    return all(
        all(isinstance(one, list) and one and all(isinstance(part, str) for part in one) for one in of_record)
        and len({len(one) for one in of_record}) == 1
        for of_record in lists
    )


def _is_everywhere(records: Records, key: str) -> bool:
    """Whether no record lacks a key or path."""
    try:
        return all([look_up(record, parse_key(key))] for record in records)
    except (BadRecord, ValueError):
        return False


def _is_conversation(records: Records, key: str) -> bool:
    """Whether what a key holds is a list of turns, or JSON text of one."""
    values = [record[key] for record in records if record.get(key)]
    if not values:
        return False
    if isinstance(values[0], str):
        return values[0].lstrip().startswith("[{") and any(f'"{part}"' in values[0] for part in ("role", "from"))
    return (
        isinstance(values[0], list)
        and isinstance(values[0][0], Mapping)
        and any(p <= set(values[0][0]) for p in _PARTS_OF_A_TURN)
    )


def _length(records: Records, key: str) -> float:
    """Mean length of the text under a key, in characters."""
    values = [_value(record, key) for record in records]
    return sum(len(value) for value in values if isinstance(value, str)) / len(records)
