"""The recipe's corpora: where their text and tokenizer come from, and how their tokens are laid out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fastmix_data.recipe.section import Section, require_one
from fastmix_data.units import ByteCount


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


FilePatterns = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | list[str]), Field(min_length=1)]


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

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("train", "file", "hf", "bytes"))
        return self


class TextSection(Section):
    """Documents in files and the keys that hold their text; with `prompt` and `completion`, loss is on the completion only."""

    files: FilePatterns | None = Field(
        None,
        description="Paths, folders, globs or fsspec URLs of .jsonl, .ndjson, .json (these also .gz or .zst), .parquet or .txt files; "
        "relative to the recipe. Hidden files are left out, links are followed.",
    )
    text: str | None = Field(None, description="Key or column of the text; `text` when nothing is given. Not for .txt.")
    prompt: str | None = Field(None, description="Key of the prompt, which is read but carries no loss; needs `completion`.")
    completion: str | None = Field(None, description="Key of the completion, the tokens that carry loss; needs `prompt`.")
    separator: str = Field("\n", description="Text put between prompt and completion; part of the prompt.")
    on_bad_text: Literal["replace", "refuse"] = Field(
        "replace",
        description="Broken UTF-8: replace the bytes by U+FFFD and count the document, or refuse the file.",
    )

    @model_validator(mode="after")
    def _text_or_pair(self) -> Self:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion go together; give both or neither")
        if self.prompt is not None and self.text is not None:
            raise ValueError("give text, or prompt and completion, not both")
        return self

    @property
    def text_keys(self) -> tuple[str, ...]:
        """(text,) or (prompt, completion)."""
        if self.prompt is not None and self.completion is not None:
            return (self.prompt, self.completion)
        return (self.text or "text",)

    @property
    def has_mask(self) -> bool:
        """Whether only part of the tokens carry loss."""
        return self.prompt is not None


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

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("files", "dataset"))
        return self


class ShardsSection(Section):
    """How tokens are laid out on disk."""

    block_tokens: int = Field(2048, ge=16, description="Tokens of a block, the unit of storage and of the manifest.")
    max_shard_bytes: ByteCount = Field(67_108_864, description="A shard is closed before it grows past this; memory of a worker.")
    valid_fraction: float = Field(0.02, ge=0, lt=0.5, description="Share of documents held out of sources without valid_files.")
    max_partition_bytes: ByteCount = Field(
        134_217_728,
        description="Bytes of input in one unit of work where the format can be cut (plain JSON Lines, .parquet). Files smaller than an "
        "eighth of it share one.",
    )
