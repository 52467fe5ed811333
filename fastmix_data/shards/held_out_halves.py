"""Whether the two halves of each target's held-out text are enough: one moves the mixture, the other says what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from fastmix_data.errors import InputError
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import Half, SequenceReader, half_of

# Losses of single tokens spread by about 3 nats: the mean of 1,000 is known to 0.1, which is what a good mixture may gain.
FEW_LOSS_TOKENS = 1000


def check_halves(catalog: Catalog, targets: Sequence[str], *, sequence_length: int) -> list[str]:
    """Refuse targets that say nothing in one of their halves.

    Returns:
        A warning of those that say little, or none.

    Raises:
        InputError: a half of a target has no sequence, or no label that carries loss.
    """
    scarce: dict[str, int] = {}
    for half in get_args(Half):
        # Opening the halves as the search and the comparison will is the first check.
        reader = SequenceReader(catalog, sources=targets, split="valid", sequence_length=sequence_length, half=half)
        for number, name in enumerate(targets):
            found = reader.count_loss_tokens(number, at_most=FEW_LOSS_TOKENS)
            if found == 0:
                problem = f"the {half} half of its held-out text has no token that carries loss"
                remedy = "give it more documents, or a longer training.sequence_length, in which an answer lies with its prompt"
                raise InputError(f"target {name}", problem, remedy)
            if found < FEW_LOSS_TOKENS:
                scarce[name] = min(found, scarce.get(name, found))
    if not scarce:
        return []
    listed = ", ".join(f"{name} {count}" for name, count in scarce.items())
    return [
        f"a half of a target has fewer than {FEW_LOSS_TOKENS:,} loss tokens ({listed}), which tell its loss to no better than 0.1 nats; "
        "hold out more"
    ]


def documents_seen(catalog: Catalog, target: str) -> int:
    """Documents of a target in the half that a search sees, to within one for each shard."""
    rows = catalog.shards(target, "valid")
    parts = [half_of(row.num_documents, half="search", shard_number=number) for number, row in enumerate(rows)]
    return max(1, sum(last - first for first, last in parts))
