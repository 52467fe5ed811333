"""Chat templates: Jinja as `transformers` runs it, so that a model's own template gives what it was trained on.

One difference: there is no clock. A template that writes today's date takes the date that it falls back to, and the same corpus gives
the same tokens tomorrow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.utils
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastmix_data.errors import RecipeError
from fastmix_data.messages import first_line
from fastmix_data.tokens.loss_borders import Span

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Message = Mapping[str, Any]
Conversation = Mapping[str, Any]


class RefusedConversation(Exception):
    """A template does not take a conversation, or its answers cannot be told apart in what it writes."""


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` around what the model is to write: notes the characters in between."""

    tags = {"generation"}  # noqa: RUF012  (declared so by the base class)

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.blocks: list[str] = []
        self.spans: list[Span] = []
        environment.extend(generation_tag=self)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        written = caller()
        start = sum(map(len, self.blocks))
        self.spans.append((start, start + len(written)))
        return written

    @contextmanager
    def noting(self) -> Iterator[tuple[list[str], list[Span]]]:
        self.blocks, self.spans = [], []
        yield self.blocks, self.spans


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own would escape the characters of HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, but for names that begin with an underscore: templates from the hub are strangers' programs, and are kept to data."""

    def __init__(*args: Any, **variables: Any) -> None:  # without a name for the object, so that `self` is free for a variable
        target, values = args[0], dict(*args[1:], **variables)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(target, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace cannot have the name {name!r}")


# Here and not in the object below, which travels to workers: compiled templates do not.
@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the names of special tokens that it may write.

    Attributes:
        source: the Jinja text.
        special_tokens: by the names that templates use, as `bos_token`.
        where: names it in errors.
    """

    source: str
    special_tokens: Mapping[str, str]
    where: str

    def check(self) -> None:
        """Compile it.

        Raises:
            RecipeError: it is not Jinja.
        """
        try:
            _compiled(self.source)
        except jinja2.TemplateError as error:
            problem = f"not a chat template ({first_line(error)})"
            raise RecipeError(self.where, problem, "correct it, or set chat_template: plain") from error

    @property
    def marks_answers(self) -> bool:
        """Whether the template says itself what the model is to write."""
        return _GENERATION.search(self.source) is not None

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Write messages out.

        Returns:
            The text, and the characters within generation tags.
        Raises:
            RefusedConversation: the template raises an error for them.
        """
        compiled = _compiled(self.source)
        tag: _GenerationTag = compiled.environment.generation_tag  # type: ignore[attr-defined]
        variables = {**self.special_tokens, "messages": messages, "tools": tools, "documents": None}
        try:
            with tag.noting() as (blocks, spans):
                for block in compiled.generate(**variables, add_generation_prompt=add_generation_prompt):
                    blocks.append(block)
        # A template is a program of somebody else's: it may do anything with messages of a form that it does not expect.
        except Exception as error:
            raise RefusedConversation(f"the chat template refuses it ({first_line(error)})") from error
        return "".join(blocks), spans
