"""Emit: mixtures and a token budget turned into the pools of a manifest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.arrays import Int64s
from fastmix_data.atomic_files import hash_of
from fastmix_data.errors import CorruptArtefactError, InfeasibleBudgetError, MismatchError, RecipeError
from fastmix_data.manifest.allocation import allocate_tokens, check_budget, token_caps
from fastmix_data.manifest.block_set import SourceShards
from fastmix_data.manifest.continuation import Continuation, ContinuedSource, continued_sources
from fastmix_data.manifest.estimated import estimated_caps
from fastmix_data.manifest.manifest import (
    Manifest,
    ManifestPhase,
    ManifestPool,
    ManifestSource,
    load_manifest,
    read_verified,
    save_manifest,
)
from fastmix_data.manifest.phases import PhasePlan, phases_after, plan_phases
from fastmix_data.manifest.planned_parts import planned_parts
from fastmix_data.manifest.source_stream import PlannedPool, SourceStream
from fastmix_data.messages import and_more
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from fastmix_data.shards.table_rows import column_of, distinct, num_distinct
from fastmix_data.workdir import ManifestFolder


def check_emit(catalog: Catalog, emit: EmitSection) -> Int64s:
    """Refuse a budget that no mixture of this catalog could reach; for right after preprocessing, before the search.

    Returns:
        Most tokens of each source that whole blocks can realise within its epochs, in the order of the catalog's sources.

    Raises:
        InfeasibleBudgetError: says how much is reachable.
    """
    if catalog.info.sample is not None:
        return estimated_caps(catalog, emit)
    supply = _Supply(catalog, emit, {})
    caps_K = supply.caps_K()
    check_budget(catalog.sources, available_K=supply.unique_K, caps_K=caps_K, token_budget=emit.token_budget)
    return caps_K


def emit_manifest(
    catalog: Catalog,
    mixture: Mixture | None,
    *,
    emit: EmitSection,
    directory: Path,
    mixture_files: Mapping[str, Mixture] | None = None,
    after: Continuation | None = None,
    replace: bool = False,
) -> Manifest:
    """Write `manifest.json` and `parts.parquet`, or find them complete.

    Args:
        mixture: of all phases that state none; only needed where there are such phases.
        directory: folder of the two files, usually WORKDIR/manifest.
        mixture_files: the mixtures that phases name, by the path as the recipe has it.
        after: where the run stands that this manifest is the rest of.
        replace: write anew over a manifest of other inputs.

    Raises:
        InfeasibleBudgetError: the budget is beyond the caps.
        RecipeError: a mixture's sources are not the catalog's; or nothing of the budget is left.
        MismatchError: a manifest of other inputs is there; names what differs. Or the catalog or the seed do not go on from `after`.
        CorruptArtefactError: the manifest that is there was altered.
    """
    phases = tuple(plan_phases(emit, catalog, mixture=mixture, files=mixture_files or {}))
    request = _Request(catalog, phases, emit, directory, after)
    found = None if replace else _found(request)
    return found or save_manifest(_plan(request))


class _Supply:
    """What a catalog's sources can give to production, from where they stand.

    Attributes:
        streams: of each source.
        unique_K: its tokens, shape (K,).
        served_K: tokens that it has given, shape (K,).
    """

    def __init__(self, catalog: Catalog, emit: EmitSection, begun: Mapping[str, ContinuedSource]) -> None:
        self.streams: list[SourceStream] = []
        for name in catalog.sources:
            if name in begun:
                self.streams.append(begun[name].stream)
            else:
                shards = SourceShards(catalog.shards(name, "train"), block_tokens=catalog.info.block_tokens)
                self.streams.append(SourceStream.fresh(shards, seed=emit.seed, name=name))
        self.unique_K = np.array([stream.unique_tokens for stream in self.streams], np.int64)
        served = [begun[name].num_served if name in begun else 0 for name in catalog.sources]
        self.served_K = np.array(served, np.int64)
        self._most_K = token_caps(self.unique_K, max_epochs=[emit.epochs_of(name) for name in catalog.sources])

    def caps_K(self) -> Int64s:
        """Most tokens of each source that whole blocks can still realise within its epochs, shape (K,)."""
        left_K = (self._most_K - self.served_K).tolist()
        return np.array([stream.floor(left) for stream, left in zip(self.streams, left_K, strict=True)], np.int64)

    def take(self, source: int, tokens: int) -> list[PlannedPool]:
        """Pools of a realisable amount, which the source has then given."""
        pools, self.streams[source] = self.streams[source].take(tokens)
        self.served_K[source] += tokens
        return pools


@dataclass(frozen=True)
class _Request:
    """What a manifest is asked to be made from."""

    catalog: Catalog
    whole_run: tuple[PhasePlan, ...]
    emit: EmitSection
    directory: Path
    after: Continuation | None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Of the mixtures nothing but their weights counts: searching again with the same answer changes nothing."""
        return {
            "catalog_hash": self.catalog.fingerprint,
            "mixture_hash": hash_of([dict(zip(self.catalog.sources, phase.weights, strict=True)) for phase in self.whole_run]),
            "recipe_hash": hash_of(self.emit.model_dump()),
            "root": os.path.relpath(self.catalog.root.resolve(), self.directory.resolve()),
            "after": None if self.after is None else dataclasses.asdict(self.after.place),
        }


def _mean_weights(phases: Sequence[PhasePlan]) -> tuple[float, ...]:
    """Shares of the tokens asked for in all phases, in the order of the catalog's sources."""
    if len(phases) == 1:
        return phases[0].weights
    total = sum(phase.token_budget for phase in phases)
    columns = zip(*(phase.weights for phase in phases), strict=True)
    return tuple(
        sum(weight * phase.token_budget for weight, phase in zip(column, phases, strict=True)) / total for column in columns
    )


@dataclass(frozen=True)
class _PlannedPhase:
    """What came out for a phase; of each source in their order."""

    plan: PhasePlan
    asked: tuple[int, ...]
    realised: tuple[int, ...]
    capped: tuple[bool, ...]


def _plan(request: _Request) -> Manifest:
    catalog, emit, info, after = request.catalog, request.emit, request.catalog.info, request.after
    begun = {} if after is None else continued_sources(after, catalog)
    if after is not None and emit.seed != after.manifest.seed:
        problem = f"is {emit.seed}, but the order of the manifest that is to be continued is of seed {after.manifest.seed}"
        raise MismatchError("emit.seed", problem, f"set emit.seed to {after.manifest.seed}")
    supply = _Supply(catalog, emit, begun)
    before_K = supply.served_K.tolist()
    plans = phases_after(request.whole_run, sum(before_K))
    if not plans:
        assert after is not None
        problem = f"emit.token_budget {emit.token_budget} was served by then ({sum(before_K)} tokens of the sources)"
        raise RecipeError(f"--after {after.place.tokens}", problem, "raise emit.token_budget, or name an earlier place")
    markers = [[] if after is None else stream.markers(sequence_length=after.place.sequence_length) for stream in supply.streams]
    phases, pools = _realise_phases(supply, plans, markers, names=catalog.sources)
    realised_K = supply.served_K - np.array(before_K, np.int64)
    total = int(realised_K.sum())
    budget = sum(plan.token_budget for plan in plans)
    if not total:
        problem = f"emit.token_budget leaves {budget} tokens, less than half a block of {info.block_tokens}"
        raise InfeasibleBudgetError("", problem, "raise it")
    parts = planned_parts([(pool.blocks, pool.repeats) for _, _, pool in pools])
    drawn_Q = np.array([pool.skip != pool.stop for _, _, pool in pools])
    drawn_P = np.flatnonzero(drawn_Q[column_of(parts, "pool")])
    identity, weights = request.identity, _mean_weights(plans)
    return Manifest(
        token_budget=budget,
        num_tokens=total,
        num_shards=num_distinct(parts, "path", among_N=drawn_P),
        block_tokens=info.block_tokens,
        example_tokens=info.example_tokens if column_of(parts, "has_mask").any() else None,
        dtype=np.result_type(*distinct(parts, "dtype")).str,
        vocab_size=info.vocab_size,
        eos_id=info.eos_id,
        tokenizer_sha256=info.tokenizer_sha256,
        seed=emit.seed,
        catalog_hash=identity["catalog_hash"],
        mixture_hash=identity["mixture_hash"],
        recipe_hash=identity["recipe_hash"],
        root=identity["root"],
        after=None if after is None else after.place,
        sources=tuple(
            ManifestSource(
                name=name,
                weight=weights[k],
                share=realised / total,
                num_tokens=realised,
                unique_tokens=unique,
                tokens_before=before_K[k],
                epochs=(before_K[k] + realised) / max(unique, 1),
                max_epochs=emit.epochs_of(name),
                capped=any(phase.capped[k] for phase in phases),
            )
            for k, (name, realised, unique) in enumerate(
                zip(catalog.sources, realised_K.tolist(), supply.unique_K.tolist(), strict=True)
            )
        ),
        phases=tuple(_record(phase, catalog.sources) for phase in phases),
        pools=tuple(
            ManifestPool(
                catalog.sources[k], phase, pool.first_epoch, pool.repeats, pool.skip, pool.stop, num_tokens=pool.num_tokens
            )
            for phase, k, pool in pools
        ),
        parts=parts,
        directory=request.directory,
    )


def _realise_phases(
    supply: _Supply, plans: Sequence[PhasePlan], markers: Sequence[Sequence[PlannedPool]], *, names: Sequence[str]
) -> tuple[list[_PlannedPhase], list[tuple[int, int, PlannedPool]]]:
    """Take the tokens of phase after phase off the sources.

    Returns:
        The phases; and all pools as (phase, source, pool), sorted by the first two. Markers come first of each source's.
    """
    phases, pools = list[_PlannedPhase](), list[tuple[int, int, PlannedPool]]()
    carried = 0
    for number, plan in enumerate(plans):
        caps_K, served_K = supply.caps_K(), supply.served_K.copy()
        check_budget(
            names,
            available_K=supply.unique_K,
            caps_K=caps_K,
            token_budget=plan.token_budget,
            weights_K=plan.weights,
            served_K=served_K,
            key=plan.key,
        )
        asked = allocate_tokens(plan.weights, caps_K=caps_K, token_budget=plan.token_budget).tolist()
        realised, carried = _realise(supply.streams, asked, caps=caps_K.tolist(), carried=carried)
        for k, tokens in enumerate(realised):
            of_source = supply.take(k, tokens)
            known = list(markers[k]) if number == 0 else []
            # What the first pool goes on with, it says itself.
            if known and of_source and of_source[0].skip and known[-1].blocks is of_source[0].blocks:
                known.pop()
            pools += [(number, k, pool) for pool in [*known, *of_source]]
        capped = [
            bool(weight) and tokens == cap and bool(cap or served)
            for weight, tokens, cap, served in zip(plan.weights, asked, caps_K.tolist(), served_K.tolist(), strict=True)
        ]
        phases.append(_PlannedPhase(plan, tuple(asked), tuple(realised), tuple(capped)))
    return phases, pools


def _realise(
    streams: Sequence[SourceStream], asked: Sequence[int], *, caps: Sequence[int], carried: int
) -> tuple[list[int], int]:
    """Realisable amounts next to the asked-for ones; what one source is off by is made up for by the next, and so on in the next phase.

    Saturated sources get their caps, which are realisable. The error that is carried on is thus half a block at most at every step,
    and so is the error of the total of all phases; a source is off by that and by its own half a block.
    """
    realised = [0] * len(asked)
    for source, (wanted, cap) in enumerate(zip(asked, caps, strict=True)):
        if wanted:
            realised[source] = cap if wanted == cap else streams[source].nearest(wanted + carried, cap=cap)
            carried += wanted - realised[source]
    return realised, carried


def _record(phase: _PlannedPhase, names: Sequence[str]) -> ManifestPhase:
    total = sum(phase.realised)
    return ManifestPhase(
        token_budget=phase.plan.token_budget,
        num_tokens=total,
        weights=dict(zip(names, phase.plan.weights, strict=True)),
        asked=dict(zip(names, phase.asked, strict=True)),
        tokens=dict(zip(names, phase.realised, strict=True)),
        shares={name: tokens / max(total, 1) for name, tokens in zip(names, phase.realised, strict=True)},
    )


def _found(request: _Request) -> Manifest | None:
    """The manifest that is there, if it was made from the same inputs; None if there is none or its parts need to be written again."""
    path = ManifestFolder(request.directory).manifest
    if not path.exists():
        return None
    if differences := _differences(read_verified(path), request):
        raise MismatchError(path, f"made with {'; '.join(differences)}", "give --replace to write it anew")
    try:
        return dataclasses.replace(load_manifest(path), did_work=False)
    except CorruptArtefactError:  # its parts alone: the file itself has just been read
        return None


def _differences(content: dict[str, Any], request: _Request) -> list[str]:
    """What an existing manifest was made from, where that is not what is asked for now."""
    found = {source["name"]: source for source in content["sources"]}
    names, emit, identity = request.catalog.sources, request.emit, request.identity
    changed = {name for name, value in identity.items() if content[name] != value}
    differences = []
    if "after" in changed:
        places = [f"after {place['tokens']} of {place['manifest'][:12]}" if place else "the beginning of a run"
                  for place in (content["after"], identity["after"])]  # fmt: skip
        differences.append(f"{places[0]}, now {places[1]}")
    if "catalog_hash" in changed:
        differences.append(f"another catalog ({content['catalog_hash'][:12]}, now {identity['catalog_hash'][:12]})")
    if "root" in changed:
        differences.append(f"shards at {content['root']}, now {identity['root']}")
    if "mixture_hash" in changed:
        shares = [
            f"{name} {found[name]['weight']:.4g}, now {weight:.4g}"
            for name, weight in zip(names, request.whole_run[0].weights, strict=True)
            if len(request.whole_run) == 1 and name in found and found[name]["weight"] != weight
        ]
        differences.append("another mixture" + (f" ({and_more(shares)})" if shares else ""))
    if "recipe_hash" in changed:
        before = sum(source["tokens_before"] for source in content["sources"])
        pairs = {"token_budget": (content["token_budget"] + before, emit.token_budget), "seed": (content["seed"], emit.seed)}
        keys = [f"emit.{name} {then}, now {now}" for name, (then, now) in pairs.items() if then != now]
        keys += [
            f"emit.max_epochs of {name} {found[name]['max_epochs']:g}, now {emit.epochs_of(name):g}"
            for name in names
            if name in found and found[name]["max_epochs"] != emit.epochs_of(name)
        ]
        differences.append(and_more(keys, separator="; ") if keys else "another emit section")
    return differences
