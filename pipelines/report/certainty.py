"""How sure a search is of its mixture, as far as `mixture.json` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastmix_data.results.mixture import Mixture


@dataclass(frozen=True)
class Certainty:
    """What tells how far to trust the weights; empty where the search did not record it.

    Attributes:
        signal_to_noise: of each source's score against that of the mixture; below 2 in size they cannot be told apart.
        interchangeable: groups of sources whose scores cannot be told apart.
        seed_interval: of several searches, the 90% prediction interval of each weight for one more seed.
        seed_weights: the weight that each of those searches found, by source.
        stopped: why the search ended.
    """

    signal_to_noise: Mapping[str, float]
    interchangeable: Sequence[Sequence[str]]
    seed_interval: Mapping[str, tuple[float, float]]
    seed_weights: Mapping[str, Sequence[float]]
    stopped: str

    @property
    def num_searches(self) -> int:
        """Searches whose mean the weights are."""
        return max((len(weights) for weights in self.seed_weights.values()), default=1)


def certainty_of(mixture: Mixture) -> Certainty:
    """What a mixture says about itself."""
    by_seed = mixture.seed_weights.values()
    return Certainty(
        signal_to_noise=mixture.signal_to_noise,
        interchangeable=mixture.interchangeable,
        seed_interval=mixture.seed_interval,
        seed_weights={name: [weights[name] for weights in by_seed] for name in mixture.weights} if by_seed else {},
        stopped=mixture.stopped,
    )
