"""The plan of a manifest over a sample: caps by estimated sizes, and what the estimates are too wide to tell."""

import dataclasses

import pytest

from fastmix_data.errors import CorruptArtefactError, InfeasibleBudgetError, InputError, MismatchError
from fastmix_data.manifest.emit import check_emit
from fastmix_data.manifest.estimated import load_plan, plan_emit
from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.shards.sample import CatalogSample, SizeEstimate


@pytest.fixture
def catalog(make_catalog):
    """Of `big` a tenth is there, of about 5,000 tokens; `small` is whole."""
    made = make_catalog({"big": [500], "small": [1000]})
    sample = CatalogSample(1500, 0, {"big": SizeEstimate(0.1, 5000, 4000, 6000)})
    sampled = Catalog(made.root, dataclasses.replace(made.info, sample=sample), made.rows)
    sampled.save(made.root / "catalog.parquet")
    return load_catalog(made.root / "catalog.parquet")


def plan(catalog, token_budget, weights=(0.5, 0.5), **options):
    emit = EmitSection(token_budget=token_budget, max_epochs=2.0)
    return plan_emit(catalog, [(token_budget, weights)], emit=emit, directory=catalog.root / "manifest", **options)


def test_sizes_caps_and_epochs_are_those_of_the_estimated_whole(catalog):
    assert catalog.available_K().tolist() == [5000, 1000] and catalog.num_tokens_K().tolist() == [500, 1000]
    assert catalog.share_of_sample_K(0.05).tolist() == [0.5, 0.05] and catalog.share_of_sample_K(0.5).tolist() == [1.0, 0.5]
    assert check_emit(catalog, EmitSection(token_budget=9000, max_epochs=2.0)).tolist() == [10_000, 2000]
    big, small = plan(catalog, 6000).sources
    assert (big.num_tokens, big.epochs, big.epochs_low, big.epochs_high) == (4000, 0.8, 4000 / 6000, 1.0)
    assert big.estimated and not big.capped and not small.estimated and small.capped and small.epochs == 2.0
    again = plan(catalog, 6000)
    assert not again.did_work and load_plan(again.path) == dataclasses.replace(again, did_work=True)


def test_a_budget_within_the_interval_is_doubted_and_one_beyond_it_refused(catalog):
    assert plan(catalog, 9500).doubts == ()
    assert "big cannot give as much" in plan(catalog, 9800, (0.9, 0.1), replace_found=True).doubts[0]
    within = plan(catalog, 11_000, replace_found=True)
    assert within.num_tokens == 11_000 and "may be out of reach: the caps allow 10.0K at the low end" in within.doubts[0]
    assert plan(catalog, 13_000, replace_found=True).num_tokens == 12_000
    with pytest.raises(InfeasibleBudgetError, match=r"14001 .* beyond the epoch caps, which allow 14000"):
        plan(catalog, 14_001, replace_found=True)
    with pytest.raises(InfeasibleBudgetError):
        check_emit(catalog, EmitSection(token_budget=14_001, max_epochs=2.0))


def test_later_phases_get_what_earlier_ones_leave(catalog):
    emit = EmitSection(token_budget=8000, max_epochs=2.0)
    phases = [(4000, (0.5, 0.5)), (4000, (0.5, 0.5))]
    planned = plan_emit(catalog, phases, emit=emit, directory=catalog.root / "manifest")
    assert [source.num_tokens for source in planned.sources] == [6000, 2000]


def test_a_plan_is_no_manifest_and_is_not_silently_replaced(catalog):
    planned = plan(catalog, 6000)
    for path in (planned.path, planned.directory):
        with pytest.raises(InputError, match=r"a plan with estimated sizes.*fastmix preprocess RECIPE --all"):
            load_manifest(path)
    with pytest.raises(MismatchError, match="made with another mixture; give --replace"):
        plan(catalog, 6000, (0.75, 0.25))
    planned.path.write_text(planned.path.read_text().replace("6000", "6001"))
    with pytest.raises(CorruptArtefactError, match="altered"):
        load_plan(planned.path)
    (planned.directory / "manifest.json").write_text("{}")
    with pytest.raises(MismatchError, match="a manifest is there, and the workdir holds a sample now"):
        plan(catalog, 6000)
