"""What of each source a manifest reads, and how often: the terms in which other trainers state a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from fastmix_data.manifest.manifest import Manifest, Part


@dataclass(frozen=True)
class Pool:
    """Blocks of one source that are read equally often.

    A source has a pool of all its blocks for its whole epochs, and one of some of them for the rest of its tokens.

    Attributes:
        name: the source's, with `-partial` for the rest; names of files and data sets are made from it.
        repeats: how often a run reads it.
        parts: in the manifest's order.
    """

    name: str
    source: str
    repeats: int
    parts: tuple[Part, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def num_labels(self) -> int:
        """Labels of one pass."""
        return sum(part.num_labels for part in self.parts)

    @property
    def num_blocks(self) -> int:
        """Blocks of one pass."""
        return sum(part.num_blocks for part in self.parts)

    @property
    def has_mask(self) -> bool:
        """Whether only some of its tokens carry loss."""
        return self.parts[0].has_mask


def pools_of(manifest: Manifest) -> list[Pool]:
    """The pools of a manifest, in the order of its parts. Each has one dtype, and masks for all of its parts or for none."""
    return [
        Pool(f"{source}-partial" if partial else source, source, repeats, tuple(parts))
        for (source, partial, repeats), parts in groupby(
            manifest.parts, key=lambda part: (part.source, part.partial, part.repeats)
        )
    ]
