"""From a sample to all of it: when the recipe's sample does not count any more, and what is said of the sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fastmix_data.atomic_files import hash_of, read_json
from fastmix_data.messages import and_more
from fastmix_data.recipe.sources import ShardsSection
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.sample import CatalogSample, SampleRecord, load_record, save_record
from pipelines.preprocess.plan import PreprocessPlan, without_sample
from pipelines.preprocess.receipts import Receipt
from pipelines.preprocess.sampling.estimate import estimate_size
from pipelines.preprocess.sampling.thinning import SampleCount, Thinning


def settle_sample(plan: PreprocessPlan, *, is_whole: bool) -> tuple[PreprocessPlan, list[str]]:
    """The plan of everything, where that is wanted or already there: a workdir that holds all of it never becomes a sample again.

    Args:
        is_whole: everything is wanted, whatever the recipe says.
    Returns:
        The plan, and a line where the recipe's sample is passed over unasked.
    """
    if plan.shards.sample is None:
        return plan, []
    made_from, workdir = plan.workdir.preprocess_recipe, plan.workdir
    holds_all = workdir.catalog.exists() and made_from.exists() and "sample" not in read_json(made_from)["shards"]
    if not is_whole and not holds_all:
        return plan, []
    whole = plan.shards.model_copy(update={"sample": None, "sample_seed": 0})
    said = (
        [] if is_whole else [f"shards.sample: {workdir.root} holds all of the sources already; for a sample name another workdir"]
    )
    return replace(plan, shards=whole, sections=without_sample(plan.sections)), said


def sample_of(
    thinnings: Mapping[str, Thinning],
    shards: ShardsSection,
    receipts: Mapping[str, Iterable[Receipt]],
) -> CatalogSample | None:
    """What the catalog says of the whole; None where it is there.

    Args:
        receipts: of each source.
    """
    if not thinnings:
        return None
    assert shards.sample is not None
    estimates = {}
    for name, thinning in thinnings.items():
        count = SampleCount()
        num_tokens = num_padding = 0
        for receipt in receipts[name]:
            if receipt.sample is not None:
                count.add(receipt.sample)
            for row in receipt.shards:
                if row.split == "train":
                    num_tokens += row.num_tokens
                    num_padding += row.num_padding
        estimates[name] = estimate_size(count, fraction=thinning.train, padding=num_padding / max(1, num_tokens))
    return CatalogSample(shards.sample, shards.sample_seed, estimates)


def keep_record(plan: PreprocessPlan, catalog: Catalog) -> None:
    """Note a catalog over a sample beside it, for when the whole takes its place."""
    if catalog.info.sample is not None:
        whole = hash_of(without_sample(plan.sections))
        record = SampleRecord(catalog.fingerprint, whole, catalog.info.inputs_hash, catalog.info.sample)
        save_record(plan.workdir.sample, record)


def compare_with_estimates(plan: PreprocessPlan, catalog: Catalog) -> list[str]:
    """A line on how right the estimates were, where this catalog is the whole of a sample."""
    record = load_record(plan.workdir.sample)
    if record is None or not catalog.is_or_completes(record.catalog_hash) or catalog.info.sample is not None:
        return []
    sizes = dict(zip(catalog.sources, catalog.num_tokens_K().tolist(), strict=True))
    outside = [
        f"{name} {sizes[name]} instead of {of}"
        for name, of in record.sample.sources.items()
        if not of.low <= sizes[name] <= of.high
    ]
    num_all = len(record.sample.sources)
    said = f"sizes are exact now; {num_all - len(outside)} of {num_all} lie within the 90% interval of their estimate"
    return [said + (f" (not: {and_more(outside)})" if outside else "")]


def sample_lines(catalog: Catalog) -> list[str]:
    """What is a sample, how large the whole is held to be, and how to get it."""
    sample = catalog.info.sample
    if sample is None:
        return []
    sizes = [f"{name} {of}" for name, of in sample.sources.items()]
    return [f"a sample: estimated training tokens of the whole, with 90% intervals: {and_more(sizes, shown=8)}"]
