"""The tokenizer of a run: where it comes from, its end-of-text token, and the `tokenizer.json` that everything else reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from fastmix_data.errors import CorruptArtefactError, RecipeError
from fastmix_data.git.pointers import require_no_pointer
from fastmix_data.messages import first_line

END_OF_TEXT = "<|endoftext|>"
_USUAL_EOS_NAMES = (
    END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<|im_end|>", "<｜end▁of▁sentence｜>", "[EOS]", "<EOS>", "<|eot_id|>",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizerInfo:
    """What the rest of a run needs to know of a tokenizer.

    `vocab_size` is the largest id plus one, so every id is below it even where the vocabulary has holes.
    """

    path: Path
    vocab_size: int
    eos_token: str
    eos_id: int
    sha256: str


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json` without its truncation and padding, which would lose or invent tokens.

    Raises:
        RecipeError: there is no such file, or it is not a tokenizer.
    """
    if not path.is_file():
        raise RecipeError(path, "there is no such tokenizer", "tokenizer.file names a tokenizer.json")
    require_no_pointer(path, where="tokenizer.file", name=str(path))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise RecipeError(path, f"not a tokenizer.json ({first_line(error)})", "save one with `tokenizer.save(path)`") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def download_tokenizer(name: str) -> str:
    """JSON of a tokenizer on the Hugging Face hub.

    Raises:
        RecipeError: no such tokenizer, or the hub cannot be reached.
    """
    try:
        return str(Tokenizer.from_pretrained(name).to_str())
    except Exception as error:  # the library raises Exception itself
        problem = f"{name!r} could not be fetched from the Hugging Face hub ({first_line(error)})"
        remedy = "check the name and the network, or give a local file with tokenizer.file"
        raise RecipeError("tokenizer.hf", problem, remedy) from error


def describe_tokenizer(path: Path, *, eos_token: str | None = None) -> TokenizerInfo:
    """Read a saved tokenizer's size and end-of-text token.

    Raises:
        RecipeError: `eos_token` is not in it, or none was given and none of the usual names is there.
        CorruptArtefactError: the file has gone.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptArtefactError(path, "the tokenizer is missing", "run `fastmix preprocess --replace`") from error
    tokenizer = load_tokenizer(path)
    name = find_eos_token(tokenizer, eos_token, path=path)
    eos_id = tokenizer.token_to_id(name)
    assert eos_id is not None
    return TokenizerInfo(path, vocabulary_size(tokenizer), name, eos_id, hashlib.sha256(content).hexdigest())


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The largest id plus one."""
    # Not the number of tokens: ids of a vocabulary may have holes, and a model's embedding is indexed by id.
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def find_eos_token(tokenizer: Tokenizer, asked: str | None, *, path: Path) -> str:
    """The token written after every document: the one asked for, else the first usual name the vocabulary has.

    Raises:
        RecipeError: there is none; the message lists the tokenizer's special tokens.
    """
    if asked is not None:
        if tokenizer.token_to_id(asked) is not None:
            return asked
        where, problem = "tokenizer.eos_token", f"{asked!r} is not a token of {path}"
    else:
        for name in _USUAL_EOS_NAMES:
            if tokenizer.token_to_id(name) is not None:
                return name
        where, problem = str(path), f"has no end-of-text token of a usual name ({', '.join(_USUAL_EOS_NAMES[:4])}, ...)"
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    listed = f"its special tokens are {', '.join(special[:8])}" if special else "it has no special tokens"
    raise RecipeError(where, f"{problem}; {listed}", "name one of its tokens with tokenizer.eos_token")


def byte_tokenizer() -> str:
    """JSON of a tokenizer with one token per byte, and the end-of-text token: 257 in all."""
    # The library gives it in another order in every process.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return str(tokenizer.to_str())


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> str:
    """JSON of a byte-level BPE trained on `texts`; equal texts in equal order give equal bytes.

    Words are cut as GPT-2 does, the form for which the fast encoder has its fastest path.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())
