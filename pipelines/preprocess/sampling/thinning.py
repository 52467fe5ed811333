"""Which documents of a source are tokenized when a sample is wanted, and what is counted of them to judge the others by."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fastmix_data.arrays import Bools, Int64s, UInt64s
from fastmix_data.permutation import derive_keys

_SAMPLE_STREAM = 61
# Documents are counted in so many groups by hash: how the groups differ says how sure the estimate is. Copies of a document are in one
# group, in whatever partition, so that they do not look like so many documents.
NUM_GROUPS = 32


@dataclass(frozen=True)
class Thinning:
    """A sample of one source.

    Attributes:
        train, held_out: shares of its training and of its held-out documents that are tokenized, in (0, 1].
        seed: of the recipe.
    """

    train: float
    held_out: float
    seed: int

    def ranks(self, hashes_D: UInt64s) -> UInt64s:
        """A number for each document that follows from its text and the seed alone: copies are in the sample together, or not."""
        return derive_keys(self.seed, _SAMPLE_STREAM, hashes_D.view(np.int64))

    def is_in(self, ranks_D: UInt64s, split: str) -> Bools:
        """Whether documents of a split are in the sample; those of a larger one contain those of a smaller one."""
        fraction = self.train if split == "train" else self.held_out
        if fraction >= 1:
            return np.ones(len(ranks_D), np.bool_)
        return ranks_D < np.uint64(int(fraction * 2.0**64))


@dataclass
class SampleCount:
    """Of the training documents of a partition, or of several.

    Attributes:
        num_documents, num_text_bytes: of all of them, in the sample or not.
        squares: sum of the squared bytes of all of them: large documents decide how far off an estimate can be.
        num_sampled, sampled_squares: of those in the sample.
        bytes_G, tokens_G: text and tokens of those, by group.
    """

    num_documents: int = 0
    num_text_bytes: int = 0
    squares: float = 0.0
    num_sampled: int = 0
    sampled_squares: float = 0.0
    bytes_G: list[int] = field(default_factory=lambda: [0] * NUM_GROUPS)
    tokens_G: list[int] = field(default_factory=lambda: [0] * NUM_GROUPS)

    def add_documents(self, num_bytes_D: Int64s, ranks_D: UInt64s, in_sample_D: Bools) -> None:
        """Count training documents that were read."""
        self.num_documents += len(num_bytes_D)
        self.num_text_bytes += int(num_bytes_D.sum())
        squares_D = num_bytes_D.astype(np.float64) ** 2
        self.squares += float(squares_D.sum())
        self.num_sampled += int(in_sample_D.sum())
        self.sampled_squares += float(squares_D[in_sample_D].sum())
        self.bytes_G = _added(self.bytes_G, ranks_D[in_sample_D], num_bytes_D[in_sample_D])

    def add_tokens(self, ranks_D: UInt64s, num_tokens_D: Int64s) -> None:
        """Count what documents of the sample became."""
        self.tokens_G = _added(self.tokens_G, ranks_D, num_tokens_D)

    def add(self, other: SampleCount) -> None:
        """Count those of another partition."""
        self.num_documents += other.num_documents
        self.num_text_bytes += other.num_text_bytes
        self.squares += other.squares
        self.num_sampled += other.num_sampled
        self.sampled_squares += other.sampled_squares
        self.bytes_G = [a + b for a, b in zip(self.bytes_G, other.bytes_G, strict=True)]
        self.tokens_G = [a + b for a, b in zip(self.tokens_G, other.tokens_G, strict=True)]


def _added(counts_G: list[int], ranks_D: UInt64s, values_D: Int64s) -> list[int]:
    # The low bits; the high ones have decided who is in.
    group_D = (ranks_D % np.uint64(NUM_GROUPS)).astype(np.int64)
    sums_G = np.zeros(NUM_GROUPS, np.int64)
    np.add.at(sums_G, group_D, values_D)
    return [before + added for before, added in zip(counts_G, sums_G.tolist(), strict=True)]
