"""Tokens that are there already, in the recipe: which files of which format, read where they lie."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fastmix_data.recipe.section import FilePatterns, Section, require_one

# By format, the keys that only it takes.
_ONLY_FOR = {"masks": ("olmo",), "column": ("mds",), "source": ("fastmix",), "dtype": ("olmo", "datatrove", "mds")}


class TokensSection(Section):
    """Files of tokens that another tool wrote with the recipe's tokenizer: exactly one of megatron, olmo, datatrove, mds, fastmix."""

    megatron: FilePatterns | None = Field(
        None, description="Prefixes of Megatron's data sets, each a .bin and an .idx; globs, relative to the recipe."
    )
    olmo: FilePatterns | None = Field(
        None,
        description="OLMo-core's token files, raw and without a header whatever their ending (.npy, .bin), and their folders or globs.",
    )
    datatrove: FilePatterns | None = Field(
        None,
        description="datatrove's .ds files, or globs; .ds.index, .ds.metadata and .ds.loss beside them are used where they are.",
    )
    mds: FilePatterns | None = Field(None, description="Folders that MosaicML's MDSWriter wrote, uncompressed, or globs of them.")
    fastmix: str | None = Field(None, description="Another workdir; its shards are read there, with its held-out split.")
    source: str | None = Field(None, description="Source of `fastmix`; the one of the same name when not given.")
    masks: FilePatterns | None = Field(
        None,
        description="Label masks of `olmo`, a byte for each token, 1 where it carries loss, else 0; as many files, in the order of names.",
    )
    dtype: Literal["uint16", "uint32", "int32", "int64"] | None = Field(
        None,
        description="Type of a token where the files do not say it; for `olmo` the smallest that holds the vocabulary when not given. "
        "int64 for `mds` alone.",
    )
    column: str | None = Field(
        None, description="Column of `mds` with the tokens: `tokens`, `input_ids` or the only array when not given."
    )

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        require_one(self, ("megatron", "olmo", "datatrove", "mds", "fastmix"))
        for key, formats in _ONLY_FOR.items():
            if getattr(self, key) is not None and self.format not in formats:
                raise ValueError(f"{key} is for {' and '.join(formats)}; leave it out")
        return self

    @property
    def format(self) -> str:
        """Name of the one that is given."""
        return next(name for name in ("megatron", "olmo", "datatrove", "mds", "fastmix") if getattr(self, name) is not None)

    @property
    def patterns(self) -> tuple[str, ...]:
        """What is given for it."""
        found: str | tuple[str, ...] = getattr(self, self.format)
        return (found,) if isinstance(found, str) else found
