"""Which characters of a written-out conversation are the assistant's, for templates that do not mark them.

An answer begins where the prompt for it ends: what the template writes for the messages before, with `add_generation_prompt`. It ends
where the text for the messages up to it does, the token that ends the turn included, white space after that token not: a model that
answers stops at the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from fastmix_data.tokens.control_tokens import ControlTokens
from fastmix_data.tokens.loss_borders import Span
from pipelines.rendering.chat_template import ChatTemplate, Message, RefusedConversation

# Characters that stand in no text (see `control_tokens.py`).
_MARKS = [chr(code) for code in range(0xFDD2, 0xFDF0)]
_NOT_SAID = ("role", "name", "id", "type", "tool_call_id")


def find_answers(
    text: str,
    messages: Sequence[Message],
    template: ChatTemplate,
    *,
    tools: Sequence[Any] | None,
    control: ControlTokens,
    only_last: bool,
) -> list[Span]:
    """Characters of each of the assistant's turns, in their order.

    Args:
        text: what the template makes of all messages.
    Raises:
        RefusedConversation: the template changes what it wrote before when more messages follow, in a way that hides where a turn is.
    """
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    return [_turn(text, messages, number, template, tools, control) for number in (turns[-1:] if only_last else turns)]


def _turn(
    text: str,
    messages: Sequence[Message],
    number: int,
    template: ChatTemplate,
    tools: Sequence[Any] | None,
    control: ControlTokens,
) -> Span:
    # What is written so far has to stay; of the prompt for the answer, as much as the answer then begins with.
    before, prompt = (_before(messages[:number], template, tools, add_generation_prompt=asks) for asks in (False, True))
    start = len(prompt) if text.startswith(prompt) else _num_shared(text, prompt)
    stop = len(text)
    if number < len(messages) - 1:
        upto, _ = template.render(messages[: number + 1], tools=tools)
        stop = len(upto) if text.startswith(upto) else -1
    if start < len(before) or stop < 0:
        # Templates write a turn otherwise once others follow, as without its thoughts. The words that it still has are found by marks.
        first, last = _said(text, messages, number, template, tools)
        if start < len(before):
            start = _end_of_header(text, prompt.removeprefix(before), before=first, number=number)
        if stop < 0:
            end = control.pattern.search(text, last)
            if end is None:
                raise _hidden(number)
            stop = end.end()
    answer = text[start:stop].rstrip()
    return start, start + len(answer) if answer.endswith(control.names) else stop


def _hidden(number: int) -> RefusedConversation:
    return RefusedConversation(f"the chat template writes turn {number + 1}, or what is before it, otherwise when it goes on")


def _num_shared(text: str, prompt: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, prompt, strict=False)))


def _before(
    messages: Sequence[Message], template: ChatTemplate, tools: Sequence[Any] | None, *, add_generation_prompt: bool
) -> str:
    try:
        return template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)[0]
    except RefusedConversation:
        if messages:
            raise
        return ""  # many templates look at the first message without asking whether there is one


def _said(text: str, messages: Sequence[Message], number: int, template: ChatTemplate, tools: Sequence[Any] | None) -> Span:
    """From the first character that a turn says to its last."""
    mark = unused_mark(text)
    marked = [_marked(message, mark) if place == number else message for place, message in enumerate(messages)]
    found, _ = template.render(marked, tools=tools)
    first, last = found.find(mark), found.rfind(mark)
    if first < 0 or found.replace(mark, "") != text:
        raise _hidden(number)
    return first, last - found.count(mark) + 1


def _end_of_header(text: str, header: str, *, before: int, number: int) -> int:
    """End of what the template writes to ask for an answer, the last one before a position."""
    place = text.rfind(header, 0, before) if header else -1
    if place < 0:
        raise _hidden(number)
    return place + len(header)


def unused_mark(text: str) -> str:
    """A character that is not in a text.

    Raises:
        RefusedConversation: it holds all of those that no text should hold.
    """
    mark = next((mark for mark in _MARKS if mark not in text), None)
    if mark is None:
        raise RefusedConversation("it holds every noncharacter of Unicode")
    return mark


def _marked(value: Any, mark: str) -> Any:
    """The same with a mark on either side of every text that a turn says; inside of its outer white space, which templates may cut."""
    if isinstance(value, str):
        said = value.strip()
        return value.replace(said, f"{mark}{said}{mark}", 1) if said else value
    if isinstance(value, Mapping):
        return {key: inner if key in _NOT_SAID else _marked(inner, mark) for key, inner in value.items()}
    if isinstance(value, list):
        return [_marked(inner, mark) for inner in value]
    return value
