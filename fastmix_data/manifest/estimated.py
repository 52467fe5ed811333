"""The plan of a manifest, where only a sample of the sources is there: the figures that `emit` would come to, as estimates.

A manifest names blocks, and those of the whole do not exist yet. `plan.json` lies where it will lie, and nothing reads it as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.atomic_files import hash_of, read_json, write_json
from fastmix_data.errors import CorruptArtefactError, MismatchError
from fastmix_data.manifest.allocation import allocate_tokens, check_budget, token_caps
from fastmix_data.messages import joined
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.shards.catalog import Catalog
from fastmix_data.units import format_count
from fastmix_data.workdir import ManifestFolder

PLAN_KIND = "fastmix-plan"
SCHEMA_VERSION = 1
Phase = tuple[int, Sequence[float]]
COMPLETE = "run `fastmix preprocess RECIPE --all` for the rest, then `fastmix emit RECIPE`"


@dataclass(frozen=True)
class PlannedSource:
    """What one source is to give, as a manifest's source has it.

    `unique_tokens` is estimated where `estimated` says so, and `unique_low` to `unique_high` is its 90% interval; so is what follows from
    it: `epochs`, `epochs_low` and `epochs_high`, and whether the source is at its cap.
    """

    name: str
    weight: float
    share: float
    num_tokens: int
    unique_tokens: int
    unique_low: int
    unique_high: int
    estimated: bool
    epochs: float
    epochs_low: float
    epochs_high: float
    max_epochs: float
    capped: bool


@dataclass(frozen=True)
class EmitPlan:
    """What a manifest will be about.

    Attributes:
        num_tokens: that the budget comes to, to within blocks.
        doubts: what the estimates are too wide to tell, a sentence each.
        directory: folder it lies in; not part of the file.
        did_work: False if it was there already; not part of the file.
    """

    token_budget: int
    num_tokens: int
    catalog_hash: str
    mixture_hash: str
    recipe_hash: str
    sources: tuple[PlannedSource, ...]
    doubts: tuple[str, ...] = ()
    directory: Path = Path()
    did_work: bool = True

    @property
    def path(self) -> Path:
        """The plan's own file."""
        return ManifestFolder(self.directory).plan

    @property
    def message(self) -> str:
        """One line for the user."""
        names = [source.name for source in self.sources if source.estimated]
        if not self.did_work:
            return f"{self.path} is a plan with estimates and matches; {COMPLETE}"
        return f"{self.path}: a plan, no manifest: sizes of {joined(names)} are estimated from a sample; {COMPLETE}"


def estimated_caps(catalog: Catalog, emit: EmitSection) -> Int64s:
    """Most tokens of each source within its epochs, shape (K,), by estimated sizes, where a sample is there.

    Raises:
        InfeasibleBudgetError: the budget is beyond the caps even if every source is as large as its interval allows.
    """
    names = catalog.sources
    most_K = _caps(catalog, emit, _bounds(catalog)[1])
    check_budget(names, available_K=catalog.available_K(), caps_K=most_K, token_budget=emit.token_budget)
    return _caps(catalog, emit, catalog.available_K())


def plan_emit(
    catalog: Catalog, phases: Sequence[Phase], *, emit: EmitSection, directory: Path, replace_found: bool = False
) -> EmitPlan:
    """Write `plan.json`, or find it as it is to be.

    Args:
        catalog: over a sample.
        phases: of the run: tokens, and shares of them in the order of the catalog's sources.
        directory: folder of the plan, in which the manifest will lie.
        replace_found: write over a plan of other inputs, and put it in the place of a manifest.

    Raises:
        InfeasibleBudgetError: the budget is beyond the caps even if every source is as large as its interval allows.
        MismatchError: a manifest, or a plan of other inputs, is there.
    """
    plan = _plan(catalog, phases, emit, directory)
    folder = ManifestFolder(directory)
    if not replace_found:
        if folder.manifest.exists():
            problem = "a manifest is there, and the workdir holds a sample now"
            raise MismatchError(folder.manifest, problem, f"{COMPLETE}, or give --replace for a plan in its place")
        if folder.plan.exists():
            _require_same(load_plan(folder.plan), plan)
            return replace(plan, did_work=False)
    folder.manifest.unlink(missing_ok=True)
    folder.parts.unlink(missing_ok=True)
    content = {key: value for key, value in asdict(plan).items() if key not in ("directory", "did_work")}
    content = {"schema_version": SCHEMA_VERSION, "kind": PLAN_KIND, "estimated": True, **content}
    write_json(folder.plan, {**content, "sha256": hash_of(content)})
    return plan


def load_plan(path: Path) -> EmitPlan:
    """Read `plan.json`.

    Raises:
        CorruptArtefactError: it is none, or was altered.
    """
    content: Mapping[str, Any] = read_json(path)
    known = ("sha256", "schema_version", "kind", "estimated")
    if content.get("kind") != PLAN_KIND or content.get("schema_version") != SCHEMA_VERSION:
        raise CorruptArtefactError(path, "not a plan of this version", "run `fastmix emit --replace`")
    if content.get("sha256") != hash_of({key: value for key, value in content.items() if key != "sha256"}):
        raise CorruptArtefactError(path, "does not have its own hash, so it was altered", "run `fastmix emit --replace`")
    return EmitPlan(
        **{key: value for key, value in content.items() if key not in (*known, "sources", "doubts")},
        sources=tuple(PlannedSource(**source) for source in content["sources"]),
        doubts=tuple(content["doubts"]),
        directory=path.parent,
    )


def _bounds(catalog: Catalog) -> tuple[Int64s, Int64s]:
    """Ends of the interval of each source's size; where it is whole, its size twice."""
    sample = {} if catalog.info.sample is None else catalog.info.sample.sources
    sizes = dict(zip(catalog.sources, catalog.available_K().tolist(), strict=True))
    low = [sample[name].low if name in sample else size for name, size in sizes.items()]
    high = [sample[name].high if name in sample else size for name, size in sizes.items()]
    return np.array(low, np.int64), np.array(high, np.int64)


def _caps(catalog: Catalog, emit: EmitSection, available_K: Int64s) -> Int64s:
    return token_caps(available_K, max_epochs=[emit.epochs_of(name) for name in catalog.sources])


def _plan(catalog: Catalog, phases: Sequence[Phase], emit: EmitSection, directory: Path) -> EmitPlan:
    names, available_K, (low_K, high_K) = catalog.sources, catalog.available_K(), _bounds(catalog)
    # Whether it can be reached at all is asked of the high end; what it comes to, of the expected sizes.
    _allocate(names, phases, available_K=available_K, caps_K=_caps(catalog, emit, high_K), is_checked=True)
    caps_K = _caps(catalog, emit, available_K)
    tokens_K = _allocate(names, phases, available_K=available_K, caps_K=caps_K, is_checked=False)
    token_budget, num_tokens = sum(tokens for tokens, _ in phases), int(tokens_K.sum())
    weights_K = np.sum([np.array(weights) * (tokens / token_budget) for tokens, weights in phases], axis=0)
    sampled = {} if catalog.info.sample is None else catalog.info.sample.sources
    columns = (weights_K, tokens_K, available_K, low_K, high_K, caps_K)
    return EmitPlan(
        token_budget=token_budget,
        num_tokens=num_tokens,
        catalog_hash=catalog.fingerprint,
        mixture_hash=hash_of([dict(zip(names, weights, strict=True)) for _, weights in phases]),
        recipe_hash=hash_of(emit.model_dump()),
        sources=tuple(
            PlannedSource(
                name=name,
                weight=weight,
                share=tokens / max(1, num_tokens),
                num_tokens=tokens,
                unique_tokens=unique,
                unique_low=low,
                unique_high=high,
                estimated=name in sampled,
                epochs=tokens / max(1, unique),
                epochs_low=tokens / max(1, high),
                epochs_high=tokens / max(1, low),
                max_epochs=emit.epochs_of(name),
                capped=0 < cap == tokens,
            )
            for name, weight, tokens, unique, low, high, cap in zip(names, *(column.tolist() for column in columns), strict=True)
        ),
        doubts=tuple(_doubts(names, phases, tokens_K, _caps(catalog, emit, low_K))),
        directory=directory,
    )


def _allocate(names: Sequence[str], phases: Sequence[Phase], *, available_K: Int64s, caps_K: Int64s, is_checked: bool) -> Int64s:
    """Tokens of each source over all phases, shape (K,), as many as the caps allow where that is not checked."""
    given_K = np.zeros(len(caps_K), np.int64)
    for tokens, weights in phases:
        left_K = caps_K - given_K
        if is_checked:
            check_budget(names, available_K=available_K, caps_K=left_K, token_budget=tokens, weights_K=weights)
        within = min(tokens, int(left_K[np.array(weights) > 0].sum()))
        given_K = given_K + allocate_tokens(weights, caps_K=left_K, token_budget=within)
    return given_K


def _doubts(names: Sequence[str], phases: Sequence[Phase], tokens_K: Int64s, low_caps_K: Int64s) -> list[str]:
    token_budget = sum(tokens for tokens, _ in phases)
    least = int(_allocate(names, phases, available_K=low_caps_K, caps_K=low_caps_K, is_checked=False).sum())
    if least < token_budget:
        budget, reach = format_count(token_budget), format_count(least)
        return [f"the budget of {budget} may be out of reach: the caps allow {reach} at the low end of the sizes"]
    near = [name for name, tokens, cap in zip(names, tokens_K.tolist(), low_caps_K.tolist(), strict=True) if tokens > cap]
    return [f"at the low end of their sizes {joined(near)} cannot give as much: the caps hold"] if near else []


def _require_same(found: EmitPlan, wanted: EmitPlan) -> None:
    said = {"catalog_hash": "another catalog", "mixture_hash": "another mixture", "recipe_hash": "another emit section"}
    differing = [text for key, text in said.items() if getattr(found, key) != getattr(wanted, key)]
    if differing:
        raise MismatchError(wanted.path, f"made with {joined(differing)}", "give --replace to write it anew")
