"""Control tokens of a tokenizer, and a copy of it that no text can make write one.

A tokenizer looks for the names of its control tokens in a text before anything else, so `<|endoftext|>` in a web page becomes the
token. In the copy they have names that stand in no text: what a document spells is ordinary text to it, and what a chat template
writes can still be told to it by those names, in one call, so that the words around them are cut as ever.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# Noncharacters: valid UTF-8 that Unicode has set aside for use inside a program, never for text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


@dataclass(frozen=True)
class ControlTokens:
    """Names and ids of the tokens that mean something other than their name, and the names they have in the copy.

    Attributes:
        ids: by name.
        private_names: by name.
    """

    ids: Mapping[str, int]
    private_names: Mapping[str, str]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names, for `str.endswith` and `str.startswith`."""
        return tuple(self.ids)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds their names in a text, the longest where several begin, as tokenizers do."""
        longest_first = sorted(self.ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def control_tokens(content: Mapping[str, Any], more: Iterable[str] = ()) -> ControlTokens:
    """The control tokens of a `tokenizer.json`: those marked special, and more that are used as such whatever they are marked.

    Added tokens that are not special, as runs of spaces or `<think>`, are vocabulary like any other: their makers want them found in
    text.

    Raises:
        KeyError: one of `more` is no token of it.
    """
    ids = {token["content"]: int(token["id"]) for token in content["added_tokens"] if token["special"]}
    if missing := [name for name in more if name not in ids]:
        vocabulary = vocabulary_of(content["model"]) | {token["content"]: int(token["id"]) for token in content["added_tokens"]}
        ids |= {name: vocabulary[name] for name in missing}
    # The hash makes the names the tokenizer's own, so that no text comes to hold one by copying from another program.
    salt = hashlib.sha256(json.dumps(content["added_tokens"]).encode()).hexdigest()[:16]
    return ControlTokens(ids, {name: f"{_OPEN}{salt}-{number}{_CLOSE}" for name, number in ids.items()})


def vocabulary_of(model: Mapping[str, Any]) -> dict[str, int]:
    """Ids of a model's pieces; added tokens may have others."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}  # Unigram


def largest_id(content: Mapping[str, Any]) -> int:
    """The largest id of a tokenizer, whose ids may have holes."""
    return max([*vocabulary_of(content["model"]).values(), *(int(token["id"]) for token in content["added_tokens"])])


def unknown_id(content: Mapping[str, Any]) -> int | None:
    """The token that stands for what a tokenizer does not know, if it has one."""
    model = content["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    name = model.get("unk_token")
    vocabulary = vocabulary_of(model) if name is not None else {}
    return vocabulary.get(name) if name is not None else None


def with_private_names(content: Mapping[str, Any], control: ControlTokens) -> str:
    """The `tokenizer.json` of the copy; every id is what it was.

    The names are changed in the vocabulary too: a model that looks up whole words would find them there.
    """
    names = control.private_names
    model = dict(content["model"])
    if isinstance(model["vocab"], Mapping):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]
    added = [
        token | {"content": names[token["content"]], "special": True, "normalized": False} if token["content"] in names else token
        for token in content["added_tokens"]
    ]
    there = {token["content"] for token in content["added_tokens"]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added += [{"id": control.ids[name], "content": names[name], **flags} for name in names if name not in there]
    added.sort(key=lambda token: int(token["id"]))
    return json.dumps(dict(content) | {"model": model, "added_tokens": added, "post_processor": None}, ensure_ascii=False)


def _makes(merge: str | list[str], names: Mapping[str, str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names
