"""Which chat template writes out the conversations of each source: the recipe's, the tokenizer's own, or a plain one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from fastmix_data.errors import RecipeError
from fastmix_data.git.pointers import require_no_pointer
from fastmix_data.tokens.document_edges import named_in, read_tokenizer_config
from fastmix_data.tokens.tokenizer import TokenizerInfo
from fastmix_data.workdir import CHAT_TEMPLATE_FILE
from pipelines.inputs.files import SourceInputs
from pipelines.rendering.chat_template import ChatTemplate
from pipelines.rendering.rendering import Rendering

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_chat_template(path: Path, *, where: str) -> str:
    """A template that the recipe names; compiled once, so that a mistake in it is told before any work.

    Raises:
        FastmixError: it cannot be read, or is not Jinja.
    """
    if path.is_file():
        require_no_pointer(path, where=where, name=str(path))
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"there is no readable file {path}"
        raise RecipeError(where, problem, "name a file of Jinja, or `tokenizer` or `plain`") from error
    ChatTemplate(source, {}, f"{where}: {path}").check()
    return source


def own_chat_template(tokenizer: Path) -> str | None:
    """The template that a tokenizer comes with, in the folder of its `tokenizer.json`."""
    beside = tokenizer.parent / CHAT_TEMPLATE_FILE
    if beside.is_file():
        require_no_pointer(beside, where="", name=str(beside))
        return beside.read_text(encoding="utf-8")
    template = read_tokenizer_config(tokenizer).get("chat_template")
    if isinstance(template, list):  # several by name, of which one is for everything
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def plain_chat_template() -> str:
    """The template for tokenizers without one."""
    return resources.files("pipelines").joinpath("templates", "plain_chat.jinja").read_text(encoding="utf-8")


def rendering_of(
    inputs: SourceInputs, *, given: str | None, own: str | None, special_tokens: Mapping[str, str]
) -> tuple[Rendering, str | None]:
    """How a source's documents become texts, and a warning where its conversations are written out in a way nobody chose.

    Args:
        given: the template in the file that the recipe names.
        own: the tokenizer's.
        special_tokens: of `names_for_templates`.
    Raises:
        RecipeError: the tokenizer's template is asked for, and it has none; or it is not Jinja.
    """
    section, warning = inputs.section, None
    template = None
    if section.messages is not None:
        where = f"{inputs.where}.chat_template"
        choice = section.chat_template or ("plain" if own is None else "tokenizer")
        if choice == "tokenizer" and own is None:
            problem = f"the tokenizer comes with no chat template (no {CHAT_TEMPLATE_FILE} beside it, none in its configuration)"
            raise RecipeError(where, problem, "put one beside tokenizer.file, name a file of Jinja, or set `plain`")
        if section.chat_template is None and own is None:
            warning = (
                f"{inputs.where}: the tokenizer comes with no chat template, so conversations are written out plainly ('User: ...'); "
                "chat_template: plain says that it is meant"
            )
        source = {"plain": plain_chat_template(), "tokenizer": own}.get(choice, given)
        assert source is not None
        template = ChatTemplate(source, special_tokens, where)
        template.check()
    return Rendering(section.separator, section.special_tokens, template, section.loss_on == "last"), warning


def names_for_templates(tokenizer: TokenizerInfo) -> dict[str, str]:
    """Special tokens by the names that templates use."""
    config = read_tokenizer_config(tokenizer.path)
    names = {"eos_token": tokenizer.eos_token}
    if tokenizer.bos_tokens:
        names["bos_token"] = tokenizer.bos_tokens[-1]
    declared: Mapping[str, Any] = {key: named_in(config, key) for key in _SPECIAL_TOKENS}
    return names | {key: name for key, name in declared.items() if name is not None}
