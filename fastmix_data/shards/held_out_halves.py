"""Whether the two halves of each target's held-out text are enough: one moves the mixture, the other says what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from fastmix_data.errors import InputError
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sequences import Half, SequenceReader, half_of

# Losses of single tokens spread by about 3 nats: the mean of 1,000 is known to 0.1, which is what a good mixture may gain.
FEW_LOSS_TOKENS = 1000
# Below this, one document is more than a tenth of what the mixture goes by.
FEW_DOCUMENTS = 10


def check_halves(catalog: Catalog, targets: Sequence[str], *, sequence_length: int) -> list[str]:
    """Refuse targets that say nothing in one of their halves.

    Returns:
        A warning for each kind of target that says little.

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
    warnings = []
    if scarce:
        listed = ", ".join(f"{name} {count}" for name, count in scarce.items())
        warnings.append(
            f"a half of a target has fewer than {FEW_LOSS_TOKENS:,} loss tokens ({listed}), so its losses are known to 0.1 nats at best"
        )
    few = few_documents({name: documents_seen(catalog, name) for name in targets})
    return [*warnings, few] if few else warnings


def documents_seen(catalog: Catalog, target: str) -> int:
    """Documents of a target in the half that a search sees, to within one for each shard."""
    rows = catalog.shards(target, "valid")
    parts = [half_of(row.num_documents, half="search", shard_number=number) for number, row in enumerate(rows)]
    return sum(last - first for first, last in parts)


def few_documents(num_documents: dict[str, int]) -> str:
    """A line that names the targets of which the search sees few documents; empty if there is none."""
    few = [f"{name} {count}" for name, count in num_documents.items() if count < FEW_DOCUMENTS]
    if not few:
        return ""
    return (
        f"the search sees fewer than {FEW_DOCUMENTS} documents of a target ({', '.join(few)}), so the mixture may be that of chance; "
        "hold out more"
    )
