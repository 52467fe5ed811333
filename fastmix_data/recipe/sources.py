"""The recipe's corpora: where their text and tokenizer come from, and how their tokens are laid out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from fastmix_data.recipe.fields import Field as TextField
from fastmix_data.recipe.fields import Key, parse_field, parse_key
from fastmix_data.recipe.section import FilePatterns, Section, require_one
from fastmix_data.recipe.tokens import TokensSection
from fastmix_data.remote.shard_store import DEFAULT_CACHE_BYTES, ShardStore
from fastmix_data.units import ByteCount, TokenCount

OnLongExample = Literal["truncate", "skip", "split"]


class TrainTokenizer(Section):
    """Train a byte-level BPE on a sample of the sources."""

    vocab_size: int = Field(8192, ge=257, description="Number of tokens, the end-of-text token and 256 bytes included.")
    sample_bytes: ByteCount = Field(20_000_000, description="Bytes of text to train on, divided equally over the sources.")
    seed: int = Field(0, description="Chooses which documents are sampled.")


class TokenizerSection(Section):
    """Where the tokenizer comes from: exactly one of train, file, hf, bytes."""

    train: TrainTokenizer | None = Field(None, description="Train a byte-level BPE on a sample of the sources.")
    file: str | None = Field(None, description="A `tokenizer.json` file.")
    hf: str | None = Field(None, description="A Hugging Face hub name, as org/name.")
    bytes: bool = Field(False, description="One token per byte, plus the end-of-text token (257 in all).")
    eos_token: str | None = Field(
        None, description="The token written after every document; found by its usual names when not given."
    )
    bos: Literal["auto"] | bool = Field(
        "auto",
        description="Whether a token is written before every document: auto does as the tokenizer itself does (Llama's and Gemma's have "
        "one, GPT-2's has none). It carries no loss in sources where only part of the tokens do, and is not doubled where a chat template "
        "writes it.",
    )
    bos_token: str | None = Field(None, description="The token that `bos` writes; the tokenizer's own when not given.")
    max_unknown_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of a source's characters that the tokenizer may drop or not know, measured on samples; more is an error. "
        "White space, case and accents do not count.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("train", "file", "hf", "bytes"))
        if self.bos is False and self.bos_token is not None:
            raise ValueError("bos_token is the token that bos writes; leave out bos: false")
        return self


def _checked_field(written: str) -> str:
    parse_field(written)
    return written


FieldText = Annotated[str, AfterValidator(_checked_field)]


class TextSection(Section):
    """Documents in files and the keys that hold their text; with `prompt` and `completion`, or `messages`, answers alone have loss."""

    files: FilePatterns | None = Field(
        None,
        description="Paths, folders, globs or fsspec URLs of .jsonl, .ndjson, .json (these also .gz or .zst), .parquet or .txt files; "
        "relative to the recipe. Hidden files are left out, links are followed.",
    )
    text: FieldText | None = Field(
        None,
        description="Where a record has its text: a key or column (`text` when nothing is given), a path as `a.b`, `answers[0].text` or "
        "`parts[*].text` (all, one a line), or a template as `{title}\\n{body}`. A line of a template whose keys are all empty is left "
        "out, one with `[*]` is repeated for every element; `{key?}` may be missing, `{{` is a brace. Not for .txt.",
    )
    prompt: FieldText | None = Field(
        None, description="The prompt, given as `text` is: read, but carries no loss; needs `completion`."
    )
    completion: FieldText | None = Field(
        None, description="The completion, given as `text` is: the tokens that carry loss; needs `prompt`."
    )
    messages: str | None = Field(
        None,
        description="Key or path of a conversation, instead of text: a list of turns with `role` and `content`, or `from` and `value`, or "
        "such a list as JSON text. `tools` beside it, a list of objects or such a list as JSON text, is read too.",
    )
    separator: str = Field("\n", description="Text put between prompt and completion; part of the prompt.")
    chat_template: str | None = Field(
        None,
        description="How `messages` are written out: `tokenizer` (the tokenizer's own template), `plain` (roles in words) or a file of "
        "Jinja, relative to the recipe. When not given, the tokenizer's own if there is one, else plain, which is said.",
    )
    loss_on: Literal["all", "last"] = Field(
        "all", description="Of `messages`, which of the assistant's turns carry loss: all, or only the last."
    )
    special_tokens: Literal["text", "token", "refuse"] = Field(
        "text",
        description="What a control token becomes that a document spells, as `<|endoftext|>`: ordinary text, counted; the token itself, "
        "counted; or an error. What a chat template writes is a token always.",
    )
    on_bad_text: Literal["replace", "refuse"] = Field(
        "replace",
        description="Broken UTF-8: replace the bytes by U+FFFD and count the document, or refuse the record.",
    )
    on_bad_record: Literal["fail", "skip", "quarantine"] = Field(
        "fail",
        description="A record that is not JSON, lacks a key or holds something else than text under it: stop, leave it out and count it, "
        "or also keep its bytes in the workdir's `quarantine` folder. A damaged file always stops.",
    )
    tokens: TokensSection | None = Field(
        None, description="Files of tokens instead of text: nothing is tokenized or copied, they are read where they lie."
    )
    on_long_example: OnLongExample = Field(
        "truncate",
        description="Examples of more than shards.example_tokens tokens, where only part of the tokens carry loss: truncate keeps the "
        "first ones, skip leaves the example out, split makes examples of its pieces. What has no token with loss then is left out.",
    )

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> Self:
        if self.tokens is not None and (of_text := self.model_fields_set & _OF_TEXT):
            named = ", ".join(sorted(of_text))
            raise ValueError(f"{named}: with tokens there is no text to read; leave {'it' if len(of_text) == 1 else 'them'} out")
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion go together; give both or neither")
        given = [name for name in ("text", "prompt", "messages") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError("give text, or prompt and completion, or messages, not several of them")
        if self.messages is not None and parse_key(self.messages).is_repeated:
            raise ValueError("messages is one conversation; name its list without [*]")
        return self

    @property
    def text_keys(self) -> tuple[str, ...]:
        """What the recipe gives for (text,), (prompt, completion) or (messages,)."""
        if self.messages is not None:
            return (self.messages,)
        if self.prompt is not None and self.completion is not None:
            return (self.prompt, self.completion)
        return (self.text or "text",)

    @property
    def fields(self) -> tuple[TextField, ...]:
        """`text_keys`, read."""
        return tuple(map(parse_field, self.text_keys))

    @property
    def all_keys(self) -> tuple[Key, ...]:
        """Every key that is read, those of templates included."""
        return tuple(key for field in self.fields for key in ((field,) if isinstance(field, Key) else field.all_keys()))

    @property
    def has_mask(self) -> bool:
        """Whether only part of the tokens carry loss, as far as the recipe says it: an import's files may."""
        masks = None if self.tokens is None else self.tokens.masks
        return self.prompt is not None or self.messages is not None or masks is not None


# What says how text is read.
_OF_TEXT = set(TextSection.model_fields) - {"tokens", "files"}


class SourceSection(TextSection):
    """One training corpus."""

    dataset: str | None = Field(
        None,
        description="A `datasets` name, a folder of data files or a `save_to_disk` folder, read by streaming; instead of files.",
    )
    dataset_config: str | None = Field(None, description="Configuration name of `dataset`.")
    dataset_split: str = Field("train", description="Split of `dataset` to train on.")
    valid_files: FilePatterns | None = Field(
        None,
        description="Held-out files; without them, shards.valid_fraction of the documents is held out by hash of the text.",
    )

    valid_tokens: TokensSection | None = Field(
        None,
        description="Held-out tokens of a source with `tokens`; without them, shards.valid_fraction of its blocks are held out, in several "
        "runs spread evenly over its files.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("files", "dataset", "tokens"))
        if self.valid_tokens is not None and self.tokens is None:
            raise ValueError("valid_tokens belong to tokens; give valid_files for text")
        if self.tokens is not None and self.valid_files is not None:
            raise ValueError("valid_files are text; give valid_tokens beside tokens")
        return self


class ShardsSection(Section):
    """How tokens are laid out on disk."""

    block_tokens: int = Field(2048, ge=16, description="Tokens of a block, the unit of storage and of the manifest.")
    example_tokens: int | None = Field(
        None,
        ge=8,
        description="Longest example, in tokens, that is kept whole where only part of the tokens carry loss; examples are packed into "
        "windows of this many tokens, which divides block_tokens. training.sequence_length when not given.",
    )
    max_shard_bytes: ByteCount = Field(67_108_864, description="A shard is closed before it grows past this; memory of a worker.")
    valid_fraction: float = Field(
        0.02,
        ge=0,
        lt=0.5,
        description="Share of documents held out of sources without valid_files, of blocks where they are tokens already.",
    )
    max_partition_bytes: ByteCount = Field(
        134_217_728,
        description="Bytes of input in one unit of work where the format can be cut (plain JSON Lines, .parquet). Files smaller than an "
        "eighth of it share one.",
    )
    sample: TokenCount | None = Field(
        None,
        description="Tokens to make instead of all, for a search: about as many of each source, whole where it is smaller, chosen by hash "
        "of the text, so that the whole contains them. Held-out files, targets with files and imports are whole, and so is the rest held "
        "out of a target, up to the source's share. Sizes are estimated; `fastmix preprocess --all` makes the rest.",
    )
    sample_seed: int = Field(0, ge=0, description="Another seed draws another `sample`.")


class StorageSection(Section):
    """Where search and comparison read the shards. `fastmix preprocess` writes WORKDIR/shards as ever; what is copied is up to you."""

    shards: str | None = Field(
        None,
        description="What WORKDIR/shards was copied to: s3://BUCKET/PREFIX, another URL that Arrow reads (gs://, abfs://, hdfs://), or a "
        "folder, relative to the recipe. When not given, WORKDIR/shards itself, for a workdir on a shared file system.",
    )
    cache: str = Field(
        description="Folder on each machine that keeps what was fetched, for all processes of the machine and for later runs; relative "
        "to the recipe, and with environment variables ($SLURM_TMPDIR/fastmix)."
    )
    cache_bytes: ByteCount = Field(
        DEFAULT_CACHE_BYTES,
        ge=1 << 20,
        description="What the cache may take of its disk; what was not used for longest goes first. Hold at least locality_window "
        "sequences of every source, and the held-out text of the targets, twice.",
    )

    @field_validator("cache")
    @classmethod
    def _known_variables(cls, cache: str) -> str:
        if "$" in os.path.expandvars(cache):
            raise ValueError(f"{cache!r} has an environment variable that is not set; set it, or name the folder")
        return cache

    def store(self, *, base: Path, shards: Path) -> ShardStore:
        """What is read.

        Args:
            base: folder that relative paths start from.
            shards: the workdir's own.
        """
        url = self.shards or str(shards)
        if "://" not in url:
            url = os.path.normpath(base / Path(url).expanduser())
        cache = os.path.normpath(base / Path(os.path.expandvars(self.cache)).expanduser())
        return ShardStore(url, cache, self.cache_bytes)
