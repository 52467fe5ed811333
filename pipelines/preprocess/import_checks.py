"""Whether tokens that are there already can be those of the recipe's tokenizer, judged by samples before anything is written."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastmix_data.errors import InputError
from fastmix_data.foreign.foreign_file import ForeignFile
from fastmix_data.tokens.tokenizer import TokenizerInfo
from fastmix_data.workdir import Workdir
from pipelines.inputs.token_files import TokenInputs

# Of all files of a source together, so that 100,000 of them do not take the hour that reading them would.
_WINDOWS_OF_A_SOURCE, _MOST_WINDOWS, _FEWEST_WINDOWS = 4096, 64, 4
_WINDOW_TOKENS = 4096


def check_imports(imports: Iterable[TokenInputs], tokenizer: TokenizerInfo, *, example_tokens: int | None) -> list[str]:
    """Look at evenly spaced windows of every file.

    Args:
        example_tokens: of this workdir; None if nothing in it has masks.

    Returns:
        Warnings: of what the files leave open.

    Raises:
        InputError: a token is not in the vocabulary, the files seem to be of another type, or shards were made with another tokenizer.
    """
    warnings: list[str] = []
    for tokens in imports:
        _check_borrowed(tokens, tokenizer, example_tokens=example_tokens)
        if not tokens.files:
            continue
        num_ends = num_seen = 0
        for file in tokens.files:
            seen, ends = _check_file(file, tokenizer, where=tokens.where, num_windows=_num_windows(len(tokens.files)))
            num_seen, num_ends = num_seen + seen, num_ends + ends
        if not num_ends:
            warnings.append(
                f"{tokens.where}: none of the {num_seen} tokens looked at is {tokenizer.eos_token} ({tokenizer.eos_id}), which ends "
                "documents here; see that they were made with this tokenizer, and tokenizer.eos_token is theirs"
            )
        if tokens.has_mask:
            warnings.append(
                f"{tokens.where}: its examples lie as they do in the files, so that a window may cut one; they are told apart by "
                f"{tokenizer.eos_token}"
            )
        if any(file.documents is None for file in tokens.files):
            warnings.append(
                f"{tokens.where}: its files do not count documents; their number is estimated by {tokenizer.eos_token}"
            )
    return warnings


def documents_per_token(file: ForeignFile, *, eos_id: int, num_files: int) -> float:
    """Ends of documents in the same windows, as a share of their tokens."""
    ends = seen = 0
    for first in _windows(file, _num_windows(num_files)):
        tokens_T = file.read(first, _WINDOW_TOKENS)
        ends, seen = ends + int(np.count_nonzero(tokens_T == eos_id)), seen + len(tokens_T)
    return ends / seen


def _check_borrowed(tokens: TokenInputs, tokenizer: TokenizerInfo, *, example_tokens: int | None) -> None:
    if tokens.info is None:
        return
    other = tokens.info
    if (other.tokenizer_sha256, other.eos_id) != (tokenizer.sha256, tokenizer.eos_id):
        assert tokens.catalog is not None
        problem = "its shards were made with another tokenizer, or another end-of-text token"
        theirs = Workdir(tokens.catalog.parent).tokenizer
        raise InputError(tokens.where, problem, f"give tokenizer: {{file: {theirs}}}")
    if tokens.has_mask and other.example_tokens != example_tokens:
        problem = f"its examples are packed into windows of {other.example_tokens} tokens, here they are of {example_tokens}"
        raise InputError(tokens.where, problem, f"give shards: {{example_tokens: {other.example_tokens}}}")


def _check_file(file: ForeignFile, tokenizer: TokenizerInfo, *, where: str, num_windows: int) -> tuple[int, int]:
    """Tokens looked at, and how many of them end documents."""
    num_seen = num_ends = 0
    odd = even = 0
    for first in _windows(file, num_windows):
        tokens_T = file.read(first, _WINDOW_TOKENS)
        beyond = np.flatnonzero(tokens_T >= tokenizer.vocab_size)
        if len(beyond):
            position, token = first + int(beyond[0]), int(tokens_T[beyond[0]])
            problem = f"token {position} of {file.name} is {token}, and the tokenizer's vocabulary has {tokenizer.vocab_size}"
            remedy = "give the tokenizer that they were made with"
            raise InputError(where, problem, f"{remedy}, or the dtype they were written as")
        if file.mask is not None and (most := int(file.read_mask(first, _WINDOW_TOKENS).max())) > 1:
            raise InputError(where, f"{file.mask.name} has a {most}, and a mask is of 0 and 1", "give one byte for each token")
        num_seen, num_ends = num_seen + len(tokens_T), num_ends + int(np.count_nonzero(tokens_T == tokenizer.eos_id))
        odd, even = odd + int(np.count_nonzero(tokens_T[1::2])), even + int(np.count_nonzero(tokens_T[::2]))
    # Four bytes of a small number, read as two numbers: every other one is 0.
    if file.dtype == "<u2" and num_seen > 1 and (odd == 0) != (even == 0):
        raise InputError(where, f"every other token of {file.name} is 0, as if it had 4 bytes a token", "give dtype: uint32")
    return num_seen, num_ends


def _num_windows(num_files: int) -> int:
    return min(_MOST_WINDOWS, max(_FEWEST_WINDOWS, _WINDOWS_OF_A_SOURCE // num_files))


def _windows(file: ForeignFile, num_windows: int) -> list[int]:
    """Where they begin: all of a file that is no longer than they are."""
    if file.num_tokens <= num_windows * _WINDOW_TOKENS:
        return list(range(0, file.num_tokens, _WINDOW_TOKENS))
    last = file.num_tokens - _WINDOW_TOKENS
    return [last * window // (num_windows - 1) for window in range(num_windows)]
