from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastmix_data.errors import MismatchError
from fastmix_data.loader import IGNORED_LABEL, ManifestDataset
from fastmix_data.loading.source_meter import SourceMeter
from fastmix_data.loading.transformers_inputs import transformers_inputs
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog

WEIGHTS = {"books": 0.5, "code": 0.3, "notes": 0.2}


@pytest.fixture
def manifest(make_catalog: Callable[..., Catalog]) -> Path:
    catalog = make_catalog({"books": [410, 333], "code": [2000], "notes": [100, 70, 90]}, masked=("notes",))
    emit_manifest(
        catalog,
        Mixture(weights=WEIGHTS),
        emit=EmitSection(token_budget=2600, max_epochs=4),
        directory=catalog.root / "manifest",
    )
    return catalog.root / "manifest"


def losses(item: dict[str, torch.Tensor]) -> torch.Tensor:
    """A loss of each label that tells it apart; not a number where there is none."""
    return torch.where(item["labels"] == IGNORED_LABEL, torch.nan, item["labels"] / 1000 + item["source"][:, None])


def expected(items: list[dict[str, torch.Tensor]], manifest: Path) -> dict[str, float]:
    """Figures of these items, sequence by sequence."""
    sources = ManifestDataset(manifest).manifest.sources
    figures: dict[str, float] = {}
    rows = [
        (int(source), labels, loss)
        for item in items
        for source, labels, loss in zip(item["source"], item["labels"], losses(item), strict=True)
    ]
    for index, source in enumerate(sources):
        own = [(labels, loss) for number, labels, loss in rows if number == index]
        counted = [float(value) for labels, loss in own for value in loss[labels != IGNORED_LABEL]]
        figures[f"tokens/{source.name}"] = 16 * len(own)
        figures[f"loss_tokens/{source.name}"] = len(counted)
        figures[f"loss/{source.name}"] = float(np.mean(counted))
        figures[f"share/{source.name}"] = len(own) / len(rows)
    return figures


def check(figures: dict[str, float], *, recent: dict[str, float], total: dict[str, float], manifest: Path) -> None:
    for name, value in recent.items():
        assert figures[f"source_{name}"] == pytest.approx(value, rel=1e-6), name
    for name, value in total.items():
        assert figures[f"source_total_{name}"] == pytest.approx(value, rel=1e-6), name
    drifts = []
    for source in ManifestDataset(manifest).manifest.sources:
        assert figures[f"source_epochs/{source.name}"] == pytest.approx(total[f"tokens/{source.name}"] / source.unique_tokens)
        drifts.append(total[f"share/{source.name}"] - source.weight)
        assert figures[f"source_drift/{source.name}"] == pytest.approx(drifts[-1])
    assert figures["source_drift_largest"] == pytest.approx(max(map(abs, drifts)))


def test_figures_are_since_the_last_log_and_from_the_beginning_and_go_on_after_a_resume(manifest: Path) -> None:
    items = list(ManifestDataset(manifest, batch_size=8))
    meter = SourceMeter(ManifestDataset(manifest))
    for item in items[:5]:
        meter.update(item, losses(item))
    written: list[tuple[dict[str, float], int]] = []
    figures = meter.log(5, lambda figures, step: written.append((figures, step)))
    assert written == [(figures, 5)]
    first = expected(items[:5], manifest)
    check(figures, recent=first, total=first, manifest=manifest)
    for item in items[5:8]:
        meter.update(transformers_inputs(item, source=True), losses(item).flatten())
    state = json.loads(json.dumps(meter.state_dict()))
    meter = SourceMeter(ManifestDataset(manifest))
    meter.update(items[0], losses(items[0]))  # forgotten with the load
    meter.load_state_dict(state)
    for item in items[8:]:
        meter.update(item, losses(item))
    check(meter.log(9), recent=expected(items[5:], manifest), total=expected(items, manifest), manifest=manifest)


def test_without_losses_tokens_are_counted_and_no_loss_is_made_up(manifest: Path) -> None:
    meter = SourceMeter(ManifestDataset(manifest))
    assert not any("loss/" in name or "share" in name or "drift" in name for name in meter.log(0))
    items = list(ManifestDataset(manifest))
    for item in items:
        meter.update(item)
    figures = meter.log(1)
    assert sum(figures[f"source_tokens/{name}"] for name in WEIGHTS) == 16 * len(items)


def test_a_mean_loss_is_refused_and_so_is_the_state_of_other_sources(manifest: Path) -> None:
    meter = SourceMeter(ManifestDataset(manifest))
    item = next(iter(ManifestDataset(manifest, batch_size=8)))
    with pytest.raises(MismatchError, match=r"1 losses for 128 labels; give the loss of each token: .*reduction='none'"):
        meter.update(item, losses(item).nanmean())
    state = meter.state_dict()
    with pytest.raises(MismatchError, match=r"sources that the manifest lacks: web; .*start a new meter"):
        meter.load_state_dict({**state, "sources": ["books", "web", "notes"]})


def _rank(rank: int, manifest: str, rendezvous: str, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    collectives = 0
    reduce = dist.all_reduce

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal collectives
        collectives += 1
        return reduce(*arguments, **settings)

    dist.all_reduce = counted
    dataset = ManifestDataset(manifest, batch_size=8, rank=rank, world_size=2, keep_rest=True)
    meter = SourceMeter(dataset)
    for number, item in enumerate(dataset):
        if number < 2:
            meter.update(item, losses(item))
    written: list[int] = []
    figures = meter.log(2, lambda _, step: written.append(step))
    results.put((rank, figures, written, collectives))
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_are_added_up_by_one_collective_a_log_and_one_of_them_writes(manifest: Path, tmp_path: Path) -> None:
    results = mp.get_context("spawn").SimpleQueue()
    arguments = (str(manifest), str(tmp_path / "rendezvous"), results)
    mp.start_processes(_rank, arguments, nprocs=2, start_method="spawn")
    by_rank = sorted((results.get() for _ in range(2)), key=lambda result: result[0])
    assert by_rank[0][1] == by_rank[1][1]
    assert [(written, collectives) for _, _, written, collectives in by_rank] == [([2], 1), ([], 1)]
    first = expected(list(ManifestDataset(manifest, batch_size=16))[:2], manifest)
    check(by_rank[0][1], recent=first, total=first, manifest=manifest)
