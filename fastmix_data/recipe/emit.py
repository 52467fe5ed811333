"""The recipe's emit section: the corpus to ship."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from fastmix_data.messages import and_more
from fastmix_data.recipe.section import Section
from fastmix_data.units import TokenCount, format_count, parse_count

_MAX_EPOCHS = 4.0
_PERCENT = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?)\s*%\s*$")


def _parse_epochs(value: Any) -> Any:
    return parse_count(value) if isinstance(value, str) else value


def _parse_tokens(value: Any) -> Any:
    if isinstance(value, str) and "%" in value:
        match = _PERCENT.match(value)
        if match is None or Fraction(match[1]) <= 0 or Fraction(match[1]) > 100:
            raise ValueError(f"{value!r} is not a share of the budget; write it like 80%")
        return f"{match[1]}%"
    return parse_count(value)


Epochs = Annotated[float, BeforeValidator(_parse_epochs), Field(gt=0)]
PhaseTokens = Annotated[int | str, BeforeValidator(_parse_tokens, json_schema_input_type=int | str)]


class PhaseSection(Section):
    """A stretch of the production run with a mixture of its own."""

    tokens: PhaseTokens = Field(description="Length: tokens, or percent of token_budget; all phases together are the budget.")
    weights: dict[str, float] | None = Field(
        None, description="Shares of tokens by source name, relative to each other; 0 for sources not named."
    )
    mixture: str | None = Field(
        None, description="Mixture file, relative to the recipe. Without it and without weights: the search's mixture."
    )

    @model_validator(mode="after")
    def _one_mixture(self) -> Self:
        if self.weights is not None and self.mixture is not None:
            raise ValueError("weights and mixture are both given; leave one of them out")
        for name, weight in (self.weights or {}).items():
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"weights.{name} {weight} is not a share; use a number from 0 on")
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("weights are all 0; give at least one source a share")
        if isinstance(self.tokens, int) and self.tokens < 1:
            raise ValueError(f"tokens {self.tokens} is no length; use a number above 0, or leave the phase out")
        return self

    @property
    def has_own_mixture(self) -> bool:
        """Whether it goes by another mixture than the search's."""
        return self.weights is not None or self.mixture is not None


class EmitSection(Section):
    """The corpus to ship."""

    token_budget: TokenCount = Field(description="Tokens of the production run.")
    max_epochs: Epochs | dict[str, Epochs] = Field(
        _MAX_EPOCHS, description="How often a source may be repeated: one number, or one by source name (others: 4)."
    )
    seed: int = Field(0, ge=0, description="Fixes the order of blocks.")
    phases: tuple[PhaseSection, ...] | None = Field(
        None, min_length=1, description="Mixtures that follow each other; a source goes on where the phase before left it."
    )

    @model_validator(mode="after")
    def _phases_make_up_the_budget(self) -> Self:
        wanted = self._exact_tokens()
        # Half a token of rounding is what percentages of a budget can leave.
        if self.phases is not None and abs(sum(wanted, Fraction(0)) - self.token_budget) >= 1:
            said = and_more(
                [
                    f"{phase.tokens} = {format_count(float(tokens))}"
                    if isinstance(phase.tokens, str)
                    else format_count(phase.tokens)
                    for phase, tokens in zip(self.phases, wanted, strict=True)
                ],
                shown=8,
                separator=" + ",
            )
            raise ValueError(
                f"phases come to {float(sum(wanted)):.0f} tokens ({said}), but token_budget is {self.token_budget} "
                f"({format_count(self.token_budget)}); make them sum to it, or to 100%"
            )
        return self

    def _exact_tokens(self) -> list[Fraction]:
        # Through Fraction, for 33.3% of a budget is no binary number.
        return [
            Fraction(phase.tokens[:-1]) * self.token_budget / 100 if isinstance(phase.tokens, str) else Fraction(phase.tokens)
            for phase in self.phases or ()
        ]

    def tokens_of_phases(self) -> list[int]:
        """Tokens of each phase; the sum is exactly `token_budget`."""
        ends = [round(end) for end in accumulate(self._exact_tokens(), initial=Fraction(0))]
        return [stop - start for start, stop in pairwise([*ends[:-1], self.token_budget])] if self.phases else [self.token_budget]

    @property
    def needs_search(self) -> bool:
        """Whether any part of the run goes by the search's mixture."""
        return self.phases is None or not all(phase.has_own_mixture for phase in self.phases)

    def named_sources(self) -> Mapping[str, tuple[str, ...]]:
        """Sources that keys of this section name, by the key."""
        by_source: dict[str, object] = {"emit.max_epochs": self.max_epochs}
        by_source |= {f"emit.phases.{number}.weights": phase.weights for number, phase in enumerate(self.phases or ())}
        return {key: tuple(value) for key, value in by_source.items() if isinstance(value, dict)}

    def epochs_of(self, source: str) -> float:
        """The cap of one source."""
        return self.max_epochs.get(source, _MAX_EPOCHS) if isinstance(self.max_epochs, dict) else self.max_epochs
