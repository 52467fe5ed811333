"""The tokenizer of a run: where it comes from, its end-of-text token, and the `tokenizer.json` that everything else reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from fastmix_data.errors import CorruptArtefactError, RecipeError
from fastmix_data.git.pointers import require_no_pointer
from fastmix_data.messages import first_line
from fastmix_data.tokens.document_edges import find_bos_tokens, find_eos_token, read_tokenizer_config

END_OF_TEXT = "<|endoftext|>"
# No word of a language is as long; in those written without spaces a sentence may be, and is cut once in so many characters.
_LONG_RUN = re.compile(r"\S{512}")


@dataclass(frozen=True)
class TokenizerInfo:
    """What the rest of a run needs to know of a tokenizer.

    Attributes:
        path: the `tokenizer.json`.
        vocab_size: the largest id plus one, so every id is below it even where the vocabulary has holes.
        eos_token, eos_id: what is written after every document.
        sha256: of the file.
        bos_tokens, bos_ids: what is written before every document; nothing for most tokenizers.
    """

    path: Path
    vocab_size: int
    eos_token: str
    eos_id: int
    sha256: str
    bos_tokens: tuple[str, ...] = ()
    bos_ids: tuple[int, ...] = ()

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the tokens that begin and end documents: control tokens, whatever the file marks them as."""
        return tuple(dict.fromkeys([*self.bos_tokens, self.eos_token]))


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json` without its truncation and padding, which would lose or invent tokens.

    Raises:
        RecipeError: there is no such file, or it is not a tokenizer.
    """
    return tokenizer_from(read_tokenizer(path), where=path)


def read_tokenizer(path: Path) -> str:
    """The text of a `tokenizer.json`.

    Raises:
        RecipeError: there is no such file.
    """
    if not path.is_file():
        raise RecipeError(path, "there is no such tokenizer", "tokenizer.file names a tokenizer.json")
    require_no_pointer(path, where="tokenizer.file", name=str(path))
    return path.read_text(encoding="utf-8", errors="replace")


def tokenizer_from(content: str, *, where: Path) -> Tokenizer:
    """A tokenizer from JSON, without its truncation and padding.

    Raises:
        RecipeError: it is not a tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises Exception itself
        raise RecipeError(where, f"not a tokenizer.json ({first_line(error)})", "save one with `tokenizer.save(path)`") from error
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


def download_beside(name: str, file: str) -> bytes | None:
    """A file that a tokenizer on the Hugging Face hub may have beside it; None where it has none.

    Raises:
        RecipeError: the hub cannot be reached.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file)).read_bytes()
    except Exception as error:  # whatever the network may raise
        # The error for a file that nobody could ask for is of the class of that for one that is not there. Who works without the
        # network on purpose has what there is.
        is_absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if is_absent or constants.HF_HUB_OFFLINE:
            return None
        problem = f"{file} of {name!r} could not be fetched from the Hugging Face hub ({first_line(error)})"
        raise RecipeError("tokenizer.hf", problem, "check the network, or give a local file with tokenizer.file") from error


def describe_tokenizer(
    path: Path, *, eos_token: str | None = None, bos: bool | None = None, bos_token: str | None = None
) -> TokenizerInfo:
    """Read a saved tokenizer's size and the tokens that begin and end its documents.

    Args:
        bos: whether documents begin with a token of their own; None leaves it to the tokenizer.
    Raises:
        RecipeError: `eos_token` or `bos_token` is not in it, or none was given and none is found.
        CorruptArtefactError: the file has gone.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptArtefactError(path, "the tokenizer is missing", "run `fastmix preprocess --replace`") from error
    tokenizer, config = load_tokenizer(path), read_tokenizer_config(path)
    end = find_eos_token(tokenizer, eos_token, path=path, config=config)
    eos_id = tokenizer.token_to_id(end)
    assert eos_id is not None
    begin = find_bos_tokens(tokenizer, bos, asked=bos_token, path=path, config=config)
    bos_ids = [number for name in begin if (number := tokenizer.token_to_id(name)) is not None]
    sha256 = hashlib.sha256(content).hexdigest()
    return TokenizerInfo(path, vocabulary_size(tokenizer), end, eos_id, sha256, begin, tuple(bos_ids))


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The largest id plus one."""
    # Not the number of tokens: ids of a vocabulary may have holes, and a model's embedding is indexed by id.
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def byte_tokenizer() -> str:
    """JSON of a tokenizer with one token per byte, and the end-of-text token: 257 in all."""
    # The library gives it in another order in every process.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return str(tokenizer.to_str())


def byte_tokenizer_info() -> TokenizerInfo:
    """What `byte_tokenizer` is, without a file."""
    content = byte_tokenizer()
    tokenizer = Tokenizer.from_str(content)
    eos_id, sha256 = tokenizer.token_to_id(END_OF_TEXT), hashlib.sha256(content.encode()).hexdigest()
    assert eos_id is not None
    return TokenizerInfo(Path(), vocabulary_size(tokenizer), END_OF_TEXT, eos_id, sha256)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> str:
    """JSON of a byte-level BPE trained on `texts`; equal texts in equal order give equal bytes.

    Words are cut as GPT-2 does, the form for which the fast encoder has its fastest path. Runs without white space are cut too, for
    the training only: its time grows with the square of a word's length, and a genome or an encoded picture is one word.
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
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    return str(tokenizer.to_str())


def _pieces(text: str) -> Iterator[str]:
    """A text, cut after every so many characters of a run without white space."""
    start = 0
    for run in _LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]
