"""What a catalog over a sample says of the whole: how large each source is, and in which interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmix_data.atomic_files import read_json, write_json
from fastmix_data.units import format_count


@dataclass(frozen=True)
class SizeEstimate:
    """Training tokens of a whole source, judged by a sample of its documents.

    Attributes:
        fraction: share of its training documents that are in the sample, by hash of their text.
        low, high: 90% interval of `num_tokens`.
    """

    fraction: float
    num_tokens: int
    low: int
    high: int

    def __str__(self) -> str:
        """Tokens and their interval.

        >>> str(SizeEstimate(0.01, 2_000_000, 1_950_000, 2_050_000))
        'about 2.00M (1.95M to 2.05M)'
        """
        return f"about {format_count(self.num_tokens)} ({format_count(self.low)} to {format_count(self.high)})"


@dataclass(frozen=True)
class CatalogSample:
    """Which part of the sources a catalog holds.

    Attributes:
        num_tokens: asked for.
        sources: those that are not whole.
    """

    num_tokens: int
    seed: int
    sources: Mapping[str, SizeEstimate]

    @staticmethod
    def from_json(content: Mapping[str, Any] | None) -> CatalogSample | None:
        """What `asdict` made."""
        if content is None:
            return None
        return CatalogSample(
            content["num_tokens"], content["seed"], {name: SizeEstimate(**of) for name, of in content["sources"].items()}
        )


@dataclass(frozen=True)
class SampleRecord:
    """A catalog over a sample, which stays known when the whole takes its place: what was searched on it goes for the whole.

    Attributes:
        catalog_hash: fingerprint of the catalog over the sample.
        recipe_hash, inputs_hash: those of the catalog of the whole.
        sample: what was said of the sizes.
    """

    catalog_hash: str
    recipe_hash: str
    inputs_hash: str
    sample: CatalogSample


def save_record(path: Path, record: SampleRecord) -> None:
    """Write a record atomically."""
    write_json(path, asdict(record))


def load_record(path: Path) -> SampleRecord | None:
    """The record of a workdir; None if it never held a sample."""
    if not path.is_file():
        return None
    content = read_json(path)
    sample = CatalogSample.from_json(content["sample"])
    assert sample is not None
    return SampleRecord(content["catalog_hash"], content["recipe_hash"], content["inputs_hash"], sample)
