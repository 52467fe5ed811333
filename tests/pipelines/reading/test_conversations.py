"""Conversations of every layout come out as the same JSON text, whatever the format they are in."""

import json

import pytest
from read_sources import FORMS, read, write_records

from fastmix_data.errors import InputError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "naïve?"},
    {"role": "assistant", "content": "Yes."},
]
SHAREGPT = [{"from": name, "value": turn["content"]} for name, turn in zip(("system", "human", "gpt"), TURNS, strict=True)]
WEATHER = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "rain", "tool_call_id": "1"},
    {"role": "assistant", "content": "It rains.", "name": "forecaster"},
]


def conversation(turns, **others):
    return json.dumps({"messages": turns} | others, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("record", "key", "expected"),
    [
        ({"messages": TURNS}, "messages", conversation(TURNS)),
        ({"conversations": SHAREGPT}, "conversations", conversation(TURNS)),
        ({"data": {"turns": TURNS, "tools": WEATHER}}, "data.turns", conversation(TURNS, tools=WEATHER)),
        ({"chat": json.dumps(TURNS)}, "chat", conversation(TURNS)),
        ({"messages": CALLS, "tools": WEATHER}, "messages", conversation(CALLS, tools=WEATHER)),
        ({"messages": TURNS, "tools": "none of them"}, "messages", conversation(TURNS)),
        ({"messages": CALLS, "tools": json.dumps(WEATHER)}, "messages", conversation(CALLS, tools=WEATHER)),
    ],
    ids=["role and content", "from and value", "nested", "JSON text", "tools", "no tools", "tools as text"],
)
def test_every_layout_in_every_format_gives_the_same_text(tmp_path, form, record, key, expected):
    # The second record has keys that the first one lacks: a table then has them in all its rows, as nulls.
    origin = write_records(tmp_path, form, [record | {"id": 1}, record | {"id": 2}])
    rows, counts, _ = read(tmp_path, origin | {"messages": key})
    assert [row["messages"] for row in rows] == [expected] * 2
    assert counts.num_empty == 0


def test_parts_of_text_are_put_together_and_sides_have_many_names(tmp_path):
    turns = [
        {"from": "Human", "value": "a"},
        {"from": "function_call", "value": "b"},
        {"from": "observation", "value": "c"},
        {"from": "bard", "value": "d", "weight": 1},
        {"role": "user", "content": [{"type": "text", "text": "e"}, {"type": "text", "text": "f"}]},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"turns": turns}))
    (row,) = read(tmp_path, {"files": "a.jsonl", "messages": "turns"})[0]
    messages = json.loads(row["messages"])["messages"]
    assert [(turn["role"], turn["content"]) for turn in messages] == [
        ("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d"), ("user", "ef"),
    ]  # fmt: skip
    assert messages[3]["weight"] == 1


def test_conversations_without_an_answer_are_left_out_and_counted(tmp_path):
    records = [
        {"m": TURNS[:2]},
        {"m": []},
        {"m": None},
        {"m": [TURNS[1], {"role": "assistant", "content": ""}]},
        {"m": TURNS},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows, counts, _ = read(tmp_path, {"files": "a.jsonl", "messages": "m"})
    assert [row["locator"] for row in rows] == ["line 5"] and counts.num_empty == 4


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("hello", r"'m' holds text that is no JSON list"),
        ({"role": "user"}, r"'m' holds a JSON object, not a list"),
        (["hello"], r"turn 1 of 'm' is a JSON string, not an object with role and content"),
        ([{"content": "x", "id": 1}], r"turn 1 of 'm' has no 'role' and no 'from'; its keys are content, id"),
        ([TURNS[1], {"role": "narrator", "content": "x"}], r"turn 2 of 'm' is of the unknown role 'narrator'; use one of system, .*user"),
        ([{"role": "user"}], r"turn 1 of 'm' has no 'content' and calls no tool"),
        ([{"role": "user", "content": 3}], r"turn 1 of 'm' says a JSON number, not text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"turn 1 of 'm' holds a part of type 'image_url', and only"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_by_turn(tmp_path, turns, message):
    (tmp_path / "a.jsonl").write_text(json.dumps({"m": TURNS}) + "\n" + json.dumps({"m": turns}))
    with pytest.raises(InputError, match=r"a\.jsonl: line 2: " + message) as caught:
        read(tmp_path, {"files": "a.jsonl", "messages": "m"})
    assert "\n" not in str(caught.value)


def test_surrogates_and_large_numbers_in_a_conversation_are_as_in_a_text(tmp_path):
    line = '{"m": [{"role": "assistant", "content": "half \\\\ud800", "seed": 123456789012345678901234567890}]}'.replace(
        "\\\\", "\\"
    )
    (tmp_path / "a.jsonl").write_text(line)
    (row,), counts, _ = read(tmp_path, {"files": "a.jsonl", "messages": "m"})
    assert json.loads(row["messages"])["messages"][0] == {
        "role": "assistant", "content": "half \ufffd", "seed": 123456789012345678901234567890,
    }  # fmt: skip
    assert counts.num_bad_text == 1
