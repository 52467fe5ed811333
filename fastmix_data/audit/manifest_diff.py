"""In what two manifests differ."""

from __future__ import annotations

from typing import Any

from fastmix_data.manifest.manifest import Manifest, ManifestSource
from fastmix_data.text_table import aligned
from fastmix_data.units import format_count

_RUN = ("token_budget", "num_tokens", "num_shards")
_CATALOG = ("catalog_hash", "tokenizer_sha256", "vocab_size", "eos_id", "dtype", "block_tokens", "example_tokens")
_SOURCE = ("weight", "share", "num_tokens", "unique_tokens", "tokens_before", "epochs", "max_epochs", "capped")


def manifest_diff(one: Manifest, other: Manifest) -> dict[str, Any]:
    """Pairs of values where they differ, under `run`, `catalog`, `order`, `phases` and `sources`; empty where they do not."""
    orders = [_order_of(manifest) for manifest in (one, other)]
    content = {
        "kind": "manifest diff",
        "paths": [str(one.path), str(other.path)],
        "run": _pairs({name: (getattr(one, name), getattr(other, name)) for name in _RUN}),
        "catalog": _pairs({name: (getattr(one, name), getattr(other, name)) for name in _CATALOG}),
        "order": _pairs({name: (orders[0][name], orders[1][name]) for name in orders[0]}),
        "phases": _phases(one, other),
        "sources": _sources(one, other),
    }
    # Equal numbers of parts can still be of other blocks.
    return {**content, "same_blocks": one.parts == other.parts, "equal": one.sha256 == other.sha256}


def _pairs(values: dict[str, tuple[Any, Any]]) -> dict[str, list[Any]]:
    return {name: [a, b] for name, (a, b) in values.items() if a != b}


def _order_of(manifest: Manifest) -> dict[str, Any]:
    after = manifest.after
    return {
        "seed": manifest.seed,
        "continues": None if after is None else after.manifest,
        "after_tokens": None if after is None else after.tokens,
        "sequence_length": None if after is None else after.sequence_length,
        "num_pools": len(manifest.pools),
        "num_parts": len(manifest.parts),
    }


def _phases(one: Manifest, other: Manifest) -> list[dict[str, Any]]:
    """A record for each phase in which anything differs; of a phase that one does not have, its values are None."""
    found = []
    for number in range(max(len(one.phases), len(other.phases))):
        a, b = (manifest.phases[number] if number < len(manifest.phases) else None for manifest in (one, other))
        pairs: dict[str, Any] = _pairs(
            {name: (getattr(a, name, None), getattr(b, name, None)) for name in ("token_budget", "num_tokens")}
        )
        names = dict.fromkeys([*(a.weights if a else ()), *(b.weights if b else ())])
        for kind in ("weights", "tokens"):
            of_a, of_b = (dict(getattr(phase, kind, {})) for phase in (a, b))
            changed = _pairs({name: (of_a.get(name), of_b.get(name)) for name in names})
            pairs |= {kind: changed} if changed else {}
        if pairs:
            found.append({"phase": number, **pairs})
    return found


def _sources(one: Manifest, other: Manifest) -> dict[str, dict[str, list[Any]]]:
    of_one, of_other = ({source.name: source for source in manifest.sources} for manifest in (one, other))
    found = {}
    for name in dict.fromkeys([*of_one, *of_other]):
        pair = of_one.get(name), of_other.get(name)
        changed = _pairs({key: (getattr(pair[0], key, None), getattr(pair[1], key, None)) for key in _SOURCE})
        if changed:
            found[name] = changed
    return found


def format_manifest_diff(content: dict[str, Any], one: Manifest, other: Manifest) -> str:
    """What `manifest_diff` found, for people: a row of each thing that differs."""
    head = f"A: {one.path}\nB: {other.path}"
    rows = [
        [section, name, _text(a), _text(b)]
        for section in ("run", "catalog", "order")
        for name, (a, b) in content[section].items()
    ]
    for phase in content["phases"]:
        rows += [[f"phase {phase['phase']}", name, _text(a), _text(b)] for name, (a, b) in _flat(phase)]
    if not content["same_blocks"]:
        rows.append(["blocks", "", "other ranges", "of blocks"])
    if not rows and not content["sources"]:
        return f"{head}\nthe same corpus in the same order"
    sources = [
        [name, *(_pair(a, b, key, shown) for key, shown in _COLUMNS)]
        for name in content["sources"]
        for a, b in [(_named(one, name), _named(other, name))]
    ]
    tables = [aligned([["", "", "A", "B"], *rows], flush_left=range(4))] if rows else []
    if sources:
        heads = ["source", "asked", "share", "tokens", "epochs"]
        tables.append("A -> B by source, where they differ:\n" + aligned([heads, *sources]))
    return "\n\n".join([head, *tables])


_COLUMNS = (("weight", "{:.4f}"), ("share", "{:.4f}"), ("num_tokens", ""), ("epochs", "{:.2f}"))


def _flat(phase: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    plain = [(name, phase[name]) for name in ("token_budget", "num_tokens") if name in phase]
    return [*plain, *((f"weight of {name}", pair) for name, pair in phase.get("weights", {}).items())]


def _named(manifest: Manifest, name: str) -> ManifestSource | None:
    return next((source for source in manifest.sources if source.name == name), None)


def _pair(a: ManifestSource | None, b: ManifestSource | None, key: str, shown: str) -> str:
    texts = [
        "-" if source is None else shown.format(getattr(source, key)) if shown else format_count(getattr(source, key))
        for source in (a, b)
    ]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} -> {texts[1]}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value[:12]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
