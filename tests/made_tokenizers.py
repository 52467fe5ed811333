"""Tokenizers of the kinds that models have, trained on a few lines."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = [
    "the cat sat on the mat, it's 1234\n\n  and then\tsome",
    "What is 2+2? And the capital of France is Paris, naïve one.",
    "for i in range(10):\n    pass\n def main(): return {'a': 1}",
    "number bcdefghijklmnopqrstuvwxyz 0123456789 9876543210 the cat sat and 12 in it",
    "user assistant system look_up arguments name tools function [INST] <<SYS>> question answer",
] * 4


def byte_level(control: Sequence[str] = ("<|endoftext|>",), *, bos: str | None = None) -> Tokenizer:
    """As GPT-2, or with `bos` as Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=list(control), show_progress=False)
    )
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def llama_2(control: Sequence[str] = ("<unk>", "<s>", "</s>"), *, prepends: str = "normalizer") -> Tokenizer:
    """Byte fallback, and a space in front of the text: by a normalizer in front of every part, or by Metaspace of the first only."""
    control = tuple(dict.fromkeys(["<unk>", "<s>", "</s>", *control]))
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if prepends == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepends, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*control, *fallback], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    # Bytes are tokens of the vocabulary, but no special ones.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in control]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def word_piece(*, lowercase: bool = True) -> Tokenizer:
    """As BERT: what it does not know is [UNK]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[EOS]"]
    tokenizer.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    return tokenizer


def word_level() -> Tokenizer:
    """Words between spaces; all others are the unknown one."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "</s>"]
    tokenizer.train_from_iterator(LINES, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    return tokenizer


def ascii_only() -> Tokenizer:
    """Byte-level without the bytes of other scripts, which it drops without a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [chr(code) for code in range(33, 127)]
    tokenizer.train_from_iterator(
        [line for line in LINES if line.isascii()],
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False),
    )
    return tokenizer


def with_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """The same with more control tokens."""
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names if tokenizer.token_to_id(name) is None])
    return tokenizer
