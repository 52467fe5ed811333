"""The tokens that a tokenizer's documents begin and end with, as its files say or by their usual names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fastmix_data.errors import RecipeError
from fastmix_data.git.pointers import require_no_pointer
from fastmix_data.messages import first_line
from fastmix_data.workdir import TOKENIZER_CONFIG_FILE

_USUAL_EOS_NAMES = (
    "<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<|im_end|>", "<｜end▁of▁sentence｜>", "[EOS]", "<EOS>",
    "<|eot_id|>",
)  # fmt: skip
_USUAL_BOS_NAMES = (
    "<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[BOS]", "<BOS>", "<|endoftext|>",
)  # fmt: skip


def read_tokenizer_config(path: Path) -> Mapping[str, Any]:
    """The `tokenizer_config.json` beside a `tokenizer.json`; empty where there is none.

    Raises:
        FastmixError: it is not JSON.
    """
    beside = path.parent / TOKENIZER_CONFIG_FILE
    if not beside.is_file():
        return {}
    require_no_pointer(beside, where="", name=str(beside))
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise RecipeError(beside, f"not a tokenizer_config.json ({first_line(error)})", "repair it or move it away") from error
    return content


def named_in(config: Mapping[str, Any], key: str) -> str | None:
    """A special token that a `tokenizer_config.json` names: a text, or an object that holds one."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def find_eos_token(tokenizer: Tokenizer, asked: str | None, *, path: Path, config: Mapping[str, Any] | None = None) -> str:
    """The token written after every document.

    The one asked for; else the first usual name among the tokens marked special; else what the tokenizer's files call its end; else a
    usual name of any token. In this order because a chat model's files name the end of a turn, while its vocabulary still has the end
    of a document, and because `</s>` may also be a word: where it is a tag of HTML, it is not marked special.

    Raises:
        RecipeError: there is none; the message lists the tokenizer's special tokens.
    """
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    if asked is not None:
        if tokenizer.token_to_id(asked) is not None:
            return asked
        where, problem = "tokenizer.eos_token", f"{asked!r} is not a token of {path}"
    else:
        declared = [named_in(config or {}, "eos_token"), *_around(tokenizer)[1]]
        for name in [*(name for name in _USUAL_EOS_NAMES if name in special), *declared, *_USUAL_EOS_NAMES]:
            if name is not None and tokenizer.token_to_id(name) is not None:
                return name
        where, problem = str(path), f"has no end-of-text token of a usual name ({', '.join(_USUAL_EOS_NAMES[:4])}, ...)"
    listed = f"its special tokens are {', '.join(special[:8])}" if special else "it has no special tokens"
    raise RecipeError(where, f"{problem}; {listed}", "name one of its tokens with tokenizer.eos_token")


def find_bos_tokens(
    tokenizer: Tokenizer, wanted: bool | None, *, asked: str | None, path: Path, config: Mapping[str, Any]
) -> tuple[str, ...]:
    """The tokens written before every document.

    Args:
        wanted: None takes what the tokenizer itself puts in front of a text, which may be nothing.
        asked: name of the token, for a tokenizer that does not say.
    Raises:
        RecipeError: one is wanted and none is found, or the one asked for is no token.
    """
    if asked is not None and tokenizer.token_to_id(asked) is None:
        raise RecipeError("tokenizer.bos_token", f"{asked!r} is not a token of {path}", "name one of its tokens")
    if wanted is False:
        return ()
    in_front = tuple(_around(tokenizer)[0])
    missing = [name for name in in_front if tokenizer.token_to_id(name) is None]
    if missing:
        problem = f"begins texts with {missing[0]!r}, which is no token of it"
        raise RecipeError(path, problem, "set tokenizer.bos: false, or name a token with tokenizer.bos_token")
    if asked is not None:
        return (asked,)
    if in_front or wanted is None:
        return in_front
    for name in (named_in(config, "bos_token"), *_USUAL_BOS_NAMES):
        if name is not None and tokenizer.token_to_id(name) is not None:
            return (name,)
    problem = f"{path} puts no token in front of a text and has none of a usual name ({', '.join(_USUAL_BOS_NAMES[:3])}, ...)"
    raise RecipeError("tokenizer.bos", problem, "name one of its tokens with tokenizer.bos_token, or leave bos out")


def _around(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Names of the tokens that the tokenizer's post-processor puts before and after a text."""
    # A text that has tokens of its own, to tell them from those around: not every vocabulary knows every letter.
    for text in ("a", "1", *islice(sorted(tokenizer.get_vocab()), 256)):
        try:
            bare, whole = (tokenizer.encode(text, add_special_tokens=added) for added in (False, True))
        except Exception:  # the library raises Exception itself, for what it does not know
            continue
        if len(bare) and not any(bare.special_tokens_mask):
            num_front = next((number for number, is_added in enumerate(whole.special_tokens_mask) if not is_added), 0)
            return whole.tokens[:num_front], whole.tokens[num_front + len(bare) :]
    return [], []
