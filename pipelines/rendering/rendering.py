"""Documents of any kind as texts to encode, with the characters that carry loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import pyarrow as pa

from fastmix_data.tokens.control_tokens import ControlTokens
from fastmix_data.tokens.encoding import Texts
from fastmix_data.tokens.loss_borders import Span, Spans
from pipelines.rendering.answers import find_answers, unused_mark
from pipelines.rendering.chat_template import ChatTemplate, Conversation, RefusedConversation

SpecialTokens = Literal["text", "token", "refuse"]


@dataclass(frozen=True)
class Rendering:
    """How documents of a source become texts.

    Attributes:
        separator: stands between prompt and completion.
        special_tokens: what a control token becomes that the data spell.
        template: for conversations.
        only_last: of a conversation, only the last answer carries loss.
    """

    separator: str
    special_tokens: SpecialTokens
    template: ChatTemplate | None = None
    only_last: bool = False


@dataclass
class RenderedDocuments:
    """Documents as texts.

    Attributes:
        texts: of those that could be written out.
        kept: their rows in the batch.
        num_spelled: by document kept, how many control tokens the messages of conversations spell, which are no tokens in `texts`.
        refused: rows that the chat template does not take, and why.
    """

    texts: Texts
    kept: list[int]
    num_spelled: list[int] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)


def render_documents(batch: pa.RecordBatch, rendering: Rendering, control: ControlTokens) -> RenderedDocuments:
    """Write the documents of a batch out as texts."""
    rows = list(range(batch.num_rows))
    if "messages" in batch.schema.names:
        return _render_conversations(batch.column("messages").to_pylist(), rendering, control)
    if "text" in batch.schema.names:
        return RenderedDocuments(Texts(batch.column("text").to_pylist()), rows, [0] * len(rows))
    prompts = [prompt + rendering.separator for prompt in batch.column("prompt").to_pylist()]
    texts = list(map(str.__add__, prompts, batch.column("completion").to_pylist()))
    spans: list[Spans] = [((len(prompt), len(text)),) for prompt, text in zip(prompts, texts, strict=True)]
    return RenderedDocuments(Texts(texts, spans), rows, [0] * len(rows))


def _render_conversations(cells: Sequence[str], rendering: Rendering, control: ControlTokens) -> RenderedDocuments:
    texts: list[str] = []
    spans: list[Spans] = []
    found = RenderedDocuments(Texts(texts, spans), [])
    for row, cell in enumerate(cells):
        try:
            text, answers, num_spelled = render_conversation(orjson.loads(cell), rendering, control)
        except RefusedConversation as error:
            found.refused.append((row, str(error)))
            continue
        if num_spelled and rendering.special_tokens == "text":
            found.texts.private.append(len(texts))
        texts.append(text)
        spans.append(answers)
        found.kept.append(row)
        found.num_spelled.append(num_spelled)
    return found


def render_conversation(conversation: Conversation, rendering: Rendering, control: ControlTokens) -> tuple[str, list[Span], int]:
    """Write one conversation out.

    Where its messages spell control tokens that are to be text, those of the template come out under their private names.

    Returns:
        The text, the characters with loss, and how many control tokens the messages spell.
    Raises:
        RefusedConversation: the template does not take it.
    """
    assert rendering.template is not None
    num_spelled = sum(_num_spelled(text, control) for text in _strings(conversation))
    if not num_spelled or rendering.special_tokens != "text":
        return *_write(conversation, rendering, rendering.template, control), num_spelled
    plain, _ = rendering.template.render(conversation["messages"], tools=conversation.get("tools"))
    # With a mark inside, no name in a message is one; what still is, the template has written.
    mark = unused_mark(plain)
    text, answers = _write(_broken(conversation, mark, control), rendering, rendering.template, control)
    return *_with_private_names(text, answers, mark, control), num_spelled


def _write(
    conversation: Conversation, rendering: Rendering, template: ChatTemplate, control: ControlTokens
) -> tuple[str, list[Span]]:
    messages, tools = conversation["messages"], conversation.get("tools")
    text, answers = template.render(messages, tools=tools)
    if not template.marks_answers:
        return text, find_answers(text, messages, template, tools=tools, control=control, only_last=rendering.only_last)
    if rendering.only_last and len(answers) > 1:
        # A template may mark a turn in several pieces.
        last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
        before = template.render(messages[:last], tools=tools)[0] if last else ""
        answers = [(start, stop) for start, stop in answers if text.startswith(before) and start >= len(before)] or answers[-1:]
    return text, [(start, stop) for start, stop in answers if start < stop]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _num_spelled(text: str, control: ControlTokens) -> int:
    return sum(1 for _ in control.pattern.finditer(text))


def _broken(value: Any, mark: str, control: ControlTokens) -> Any:
    """The same with a mark behind the first character of every control token that it spells."""
    if isinstance(value, str):
        return control.pattern.sub(lambda found: found[0][0] + mark + found[0][1:], value)
    if isinstance(value, Mapping):
        return {_broken(key, mark, control): _broken(inner, mark, control) for key, inner in value.items()}
    return [_broken(inner, mark, control) for inner in value] if isinstance(value, list) else value


def _with_private_names(text: str, spans: Sequence[Span], mark: str, control: ControlTokens) -> tuple[str, list[Span]]:
    """Give control tokens their private names and take the marks out; spans move along."""
    pieces: list[str] = []
    edges: list[tuple[int, int]] = []  # positions before and after
    done = 0
    for found in control.pattern.finditer(text):
        private = control.private_names[found[0]]
        pieces += [text[done : found.start()].replace(mark, ""), private]
        done = found.end()
        edges.append((done, sum(map(len, pieces))))
    pieces.append(text[done:].replace(mark, ""))

    def position(place: int) -> int:
        before = max(((old, new) for old, new in edges if old <= place), default=(0, 0))
        rest = text[before[0] : place]
        return before[1] + len(rest) - rest.count(mark)

    return "".join(pieces), [(position(start), position(stop)) for start, stop in spans]
