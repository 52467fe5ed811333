"""How large a part of each source the sample is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from fastmix_data.manifest.allocation import allocate_tokens
from fastmix_data.messages import and_more
from fastmix_data.recipe.sources import ShardsSection
from fastmix_data.units import format_count
from pipelines.inputs.files import SourceInputs
from pipelines.inputs.partitions import Partition
from pipelines.preprocess.encode_batch import EncodingPlan
from pipelines.preprocess.sampling.beginnings import expected_tokens
from pipelines.preprocess.sampling.thinning import Thinning


def is_thinned(partition: Partition) -> bool:
    """Whether a sample may leave out documents of a partition: held-out files are small, and imports cost nothing."""
    return partition.origin != "valid" and partition.tokens is None


def choose_samples(
    inputs: Mapping[str, SourceInputs],
    partitions: Mapping[str, Sequence[Partition]],
    *,
    shards: ShardsSection,
    targets: Collection[str],
    encoding_of: Callable[[str], EncodingPlan],
) -> tuple[dict[str, Thinning], list[str]]:
    """Divide `shards.sample` over the sources, by what they are expected to come to.

    Args:
        targets: names of sources whose held-out documents are a target: of these, as many are kept as of training documents.
        encoding_of: how the documents of a source become tokens.
    Returns:
        The sample of each source that is not whole, and lines for the user.
    """
    if shards.sample is None:
        return {}, []
    expected: dict[str, int] = {}
    unknown = []
    for name, source in inputs.items():
        some = [partition for partition in partitions[name] if is_thinned(partition)]
        if not some:
            continue
        found = expected_tokens(some, source.section, encoding_of(name))
        if found:
            expected[name] = found
        elif any(partition.dataset is not None for partition in some):
            unknown.append(name)
    said = [f"shards.sample: {and_more(unknown)} cannot be sized before reading and will be whole"] if unknown else []
    if sum(expected.values()) <= shards.sample:
        asked, there = format_count(shards.sample), format_count(sum(expected.values()))
        return {}, [*said, f"shards.sample: {asked} tokens is as much as there is (about {there}), so everything is tokenized"]
    shares = allocate_tokens(np.ones(len(expected)), caps_K=list(expected.values()), token_budget=shards.sample).tolist()
    samples = {}
    for (name, size), share in zip(expected.items(), shares, strict=True):
        if share < size:
            train = max(share, 1) / size
            # All that is held out of a target, as long as it is no more than what of the source is trained on.
            held_out = train / max(shards.valid_fraction, train) if name in targets else train
            samples[name] = Thinning(train, held_out, shards.sample_seed)
    return samples, said
