"""The recipe's emit section: the corpus to ship."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from fastmix_data.recipe.section import Section
from fastmix_data.units import TokenCount, parse_count

_MAX_EPOCHS = 4.0


def _parse_epochs(value: Any) -> Any:
    return parse_count(value) if isinstance(value, str) else value


Epochs = Annotated[float, BeforeValidator(_parse_epochs), Field(gt=0)]


class EmitSection(Section):
    """The corpus to ship."""

    token_budget: TokenCount = Field(description="Tokens of the production run.")
    max_epochs: Epochs | dict[str, Epochs] = Field(
        _MAX_EPOCHS, description="How often a source may be repeated: one number, or one by source name (others: 4)."
    )
    seed: int = Field(0, ge=0, description="Fixes the order of blocks.")

    def epochs_of(self, source: str) -> float:
        """The cap of one source."""
        return self.max_epochs.get(source, _MAX_EPOCHS) if isinstance(self.max_epochs, dict) else self.max_epochs
