"""Conversations of any usual layout to one: JSON text of `{"messages": [{"role": ..., "content": ...}, ...], "tools": ...}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from fastmix_data.recipe.fields import Key
from pipelines.reading.bad_records import BadRecord
from pipelines.reading.record_fields import Number, json_type, look_up

# What data sets call the sides of a conversation, and what chat templates call them.
_ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
_CALLS = ("tool_calls", "function_call")


def conversation_text(record: Mapping[str, Any], key: Key, *, nulls_are_absent: bool) -> str:
    """A record's conversation as JSON text; empty if the assistant says nothing in it, so that nothing of it carries loss.

    Other keys of a turn (`name`, `tool_calls`) are kept unless null, sorted after role and content.

    Args:
        nulls_are_absent: the record is of a table, whose rows have every key that any of them has.
    Raises:
        BadRecord: it is not a conversation, or holds more than text and calls.
    """
    turns = _list_of(look_up(record, key), key.written)
    messages = [_message(turn, f"turn {number} of {key.written!r}") for number, turn in enumerate(turns, 1)]
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(message["content"] or any(message.get(call) for call in _CALLS) for message in answers):
        return ""
    conversation: dict[str, Any] = {"messages": messages}
    tools = _tools(_beside(record, key).get("tools"))
    if tools:
        conversation["tools"] = tools
    return _json(_without_nulls(conversation) if nulls_are_absent else conversation)


def _beside(record: Mapping[str, Any], key: Key) -> Mapping[str, Any]:
    """The object that the conversation is in."""
    if key.is_plain or key.written in record:
        return record
    inside = look_up(record, Key(key.written, key.steps[:-1]))
    return inside if isinstance(inside, dict) else record


def _tools(value: Any) -> list[Any]:
    """Descriptions of tools, if that is what the key of this name holds: a list of objects, or JSON text of one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _list_of(value, "tools")
    return value if isinstance(value, list) and all(isinstance(tool, dict) for tool in value) else []


def _list_of(value: Any, name: str) -> list[Any]:
    """A list, or one that was written as JSON text to fit into a table; nothing is an empty one."""
    if isinstance(value, str) and value.strip():
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise BadRecord(
                f"{name!r} holds text that is no JSON list ({error.msg})", "fix or remove it, or name another key"
            ) from error
    if value is None or isinstance(value, str):
        return []
    if not isinstance(value, list):
        raise BadRecord(f"{name!r} holds a JSON {json_type(value)}, not a list", "fix or remove it, or name another key")
    return value


def _message(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise BadRecord(f"{where} is a JSON {json_type(turn)}, not an object with role and content")
    names = next((pair for pair in (("role", "content"), ("from", "value")) if turn.get(pair[0]) is not None), None)
    if names is None:
        raise BadRecord(f"{where} has no 'role' and no 'from'; its keys are {', '.join(sorted(turn)) or 'none'}")
    named, said = turn[names[0]], turn.get(names[1])
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise BadRecord(f"{where} is of the unknown role {named!r}", f"use one of {', '.join(_ROLES)}")
    rest = {name: turn[name] for name in sorted(turn) if name not in names and turn[name] is not None}
    if said is None and not any(rest.get(call) for call in _CALLS):
        raise BadRecord(f"{where} has no {names[1]!r} and calls no tool")
    return {"role": role, "content": None if said is None else _content(said, where)} | rest


def _content(said: Any, where: str) -> str:
    if isinstance(said, str):
        return said
    if not isinstance(said, list):
        raise BadRecord(f"{where} says a JSON {json_type(said)}, not text")
    texts = [part if isinstance(part, str) else _text_of_part(part, where) for part in said]
    return "".join(texts)


def _text_of_part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else json_type(part)
    if kind != "text" or not isinstance(part.get("text"), str):
        raise BadRecord(f"{where} holds a part of type {kind!r}, and only 'text' is read", "remove the record or its part")
    return str(part["text"])


def _without_nulls(value: Any) -> Any:
    # The content of a turn that only calls tools is null in its own right.
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None or name == "content"}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value, default=_fragment).decode()
    except orjson.JSONEncodeError:
        pass
    # Half surrogate pairs, which are counted or refused later on, and whole numbers of more than 64 bits.
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord(f"holds what JSON cannot ({error})") from error


def _fragment(value: Any) -> Any:
    if isinstance(value, Number) and value.is_finite:
        return orjson.Fragment(value.written)
    raise TypeError(f"a {json_type(value)}")
