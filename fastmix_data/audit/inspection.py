"""What is in an artefact: as a JSON-able dictionary, and as text for people."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.arrays import Bools
from fastmix_data.audit.artefact_kind import catalog_row_of, kind_of
from fastmix_data.audit.estimates import format_plan, format_sample, inspect_plan
from fastmix_data.errors import InputError
from fastmix_data.foreign.storage import lies_in_workdir
from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.messages import and_more
from fastmix_data.results.mixture import load_mixture
from fastmix_data.shards.catalog import Catalog, ShardRow, load_catalog
from fastmix_data.shards.documents import documents_of_block
from fastmix_data.shards.examples import is_padding
from fastmix_data.shards.shard_format import StridedShard
from fastmix_data.text_table import aligned
from fastmix_data.tokens.tokenizer import load_tokenizer
from fastmix_data.units import format_count
from fastmix_data.workdir import Workdir, workdir_above

_BAR_CELLS = 30
_DOCUMENTS_SHOWN = 20


def inspect(path: Path, *, block: int | None = None) -> dict[str, Any]:
    """Say what is in a shard, a catalog, a mixture, a manifest or a workdir.

    Args:
        block: of a shard, whose text and documents are wanted; 0 when not given. Only for shards.

    Raises:
        InputError: no such path, not an artefact, or no such block.
        CorruptArtefactError: the artefact cannot be read.
    """
    kind = kind_of(path)
    if block is not None and kind != "shard":
        raise InputError(path, f"a {kind} has no blocks", "leave --block out, or give a shard")
    if kind == "shard":
        return _inspect_shard(path, block=block or 0)
    if kind == "catalog":
        return _inspect_catalog(path)
    if kind == "mixture":
        return _inspect_mixture(path)
    if kind == "manifest":
        return _inspect_manifest(path)
    if kind == "plan":
        return inspect_plan(path)
    workdir = Workdir(path)
    content: dict[str, Any] = {"kind": kind, "path": str(path), "catalog": _inspect_catalog(workdir.catalog)}
    if workdir.search.mixture.is_file():
        content["mixture"] = _inspect_mixture(workdir.search.mixture)
    if workdir.manifest.manifest.is_file():
        content["manifest"] = _inspect_manifest(workdir.manifest.root)
    elif workdir.manifest.plan.is_file():
        content["plan"] = inspect_plan(workdir.manifest.plan)
    return content


def _inspect_mixture(path: Path) -> dict[str, Any]:
    return {"kind": "mixture", "path": str(path), **load_mixture(path).model_dump()}


def _inspect_shard(path: Path, *, block: int) -> dict[str, Any]:
    shard = StridedShard.detect(path)
    if block >= shard.num_blocks:
        raise InputError(path, f"has no block {block}; its blocks are 0 to {shard.num_blocks - 1}", "give one of them")
    known = catalog_row_of(path)
    layout = shard.layout
    content: dict[str, Any] = {
        "kind": "shard",
        "path": str(path),
        "bytes": path.stat().st_size,
        "num_blocks": shard.num_blocks,
        "block_tokens": layout.block_tokens,
        "stride": layout.stride,
        "dtype": layout.dtype.name,
        "members": [member.name for member in layout.members],
    }
    if known is not None:
        row = known[1]
        content |= {
            name: getattr(row, name)
            for name in ("source", "split", "num_tokens", "num_padding", "num_labels", "num_loss_tokens", "num_documents")
        }
    return {**content, "block": _inspect_block(shard, block, known=known)}


def _inspect_block(shard: StridedShard, block: int, *, known: tuple[Catalog, ShardRow] | None) -> dict[str, Any]:
    num_tokens = shard.layout.block_tokens
    if known is not None:
        num_tokens = min(num_tokens, known[1].num_tokens - block * num_tokens)
    tokens_T = shard.tokens_NT[block, :num_tokens]
    padding_T = np.zeros(num_tokens, np.bool_) if shard.starts_NT is None else is_padding(shard.starts_NT[block, :num_tokens])
    ids, written = tokens_T.tolist(), tokens_T[~padding_T].tolist()
    workdir = workdir_above(shard.path)  # of an exported shard too, which no catalog knows
    tokenizer = load_tokenizer(workdir.tokenizer) if workdir is not None and workdir.tokenizer.is_file() else None
    content: dict[str, Any] = {
        "number": block,
        "key": shard.key(block),
        "num_tokens": num_tokens,
        "num_padding": shard.layout.block_tokens - len(written),
        "tokens": ids,
        "padding": _runs(padding_T),
        "text": None if tokenizer is None else tokenizer.decode(written, skip_special_tokens=False),
        "documents": None if known is None else documents_of_block(*known, block=block),
    }
    if shard.loss_mask_NT is not None:
        content["num_loss_tokens"] = int(shard.loss_mask_NT[block, 1 : num_tokens + 1].sum())
    return content


def _runs(chosen_T: Bools) -> list[tuple[int, int]]:
    """First and last position of each run of chosen tokens."""
    edges = np.flatnonzero(np.diff(chosen_T.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return [(first, stop - 1) for first, stop in edges.tolist()]


def _inspect_catalog(path: Path) -> dict[str, Any]:
    catalog = load_catalog(path)
    splits = []
    for (source, split), rows in catalog.by_split.items():
        counted = ("num_tokens", "num_padding", "num_loss_tokens", "num_documents", "num_blocks")
        totals = {name: sum(getattr(row, name) for row in rows) for name in counted}
        totals["bytes"] = sum({row.path: row.bytes for row in rows}.values())  # ranges of one foreign file have a row each
        imported = {row.path for row in rows if not lies_in_workdir(row.storage)}
        about = {"has_mask": rows[0].has_mask, "num_imported_files": len(imported)}
        splits.append({"source": source, "split": split, "num_shards": len(rows), **totals, **about})
    return {
        "kind": "catalog",
        "path": str(path),
        "fingerprint": catalog.fingerprint,
        "block_tokens": catalog.info.block_tokens,
        "example_tokens": catalog.info.example_tokens,
        "vocab_size": catalog.info.vocab_size,
        "eos_id": catalog.info.eos_id,
        "num_tokens": sum(row.num_tokens for row in catalog.rows),
        "num_train_tokens": int(catalog.num_tokens_K().sum()),
        "sample": None if catalog.info.sample is None else asdict(catalog.info.sample),
        "sources": list(catalog.sources),
        "targets_from_files": list(catalog.targets_from_files),
        "splits": splits,
        "statistics": catalog.info.statistics,
    }


def _inspect_manifest(path: Path) -> dict[str, Any]:
    manifest = load_manifest(path)
    names = (
        "token_budget",
        "num_tokens",
        "num_shards",
        "block_tokens",
        "example_tokens",
        "vocab_size",
        "seed",
        "sha256",
        "catalog_hash",
    )
    return {
        "kind": "manifest",
        "path": str(manifest.path),
        **{name: getattr(manifest, name) for name in names},
        "root": str(manifest.root_path),
        "num_parts": len(manifest.parts),
        "num_pools": len(manifest.pools),
        "after": None if manifest.after is None else vars(manifest.after),
        "continues": manifest.continues,
        "sources": [vars(source) for source in manifest.sources],
        "phases": [vars(phase) for phase in manifest.phases],
    }


def format_inspection(content: dict[str, Any]) -> str:
    """What `inspect` found, for people."""
    match content["kind"]:
        case "shard":
            return _format_shard(content)
        case "catalog":
            return _format_catalog(content)
        case "mixture":
            return _format_mixture(content)
        case "manifest":
            return _format_manifest(content)
        case "plan":
            return format_plan(content)
    parts = [content[name] for name in ("catalog", "mixture", "manifest", "plan") if name in content]
    return "\n\n".join(format_inspection(part) for part in parts)


def _format_shard(content: dict[str, Any]) -> str:
    block = content["block"]
    lines = [
        f"{content['path']}: shard of {content['num_blocks']} blocks of {content['block_tokens']} tokens ({content['dtype']}), "
        f"{format_count(content['bytes'])}B, members {', '.join(content['members'])}"
    ]
    if "source" in content:
        lines.append(
            f"source {content['source']}, split {content['split']}, {content['num_tokens']} tokens ({content['num_loss_tokens']} "
            f"labels with loss), {content['num_documents']} documents start here"
        )
    padding = f", {block['num_padding']} of padding" if block["num_padding"] else ""
    loss = f", {block['num_loss_tokens']} with loss" if "num_loss_tokens" in block else ""
    lines.append(f"\nblock {block['number']} ({block['key']}): {block['num_tokens']} tokens{loss}{padding}")
    if block["documents"] is not None:
        lines += _format_documents(block["documents"], block["padding"])
    if block["text"] is None:
        lines.append(
            "no tokenizer/tokenizer.json above this shard, so tokens: " + " ".join(map(str, block["tokens"][:64])) + " ..."
        )
    else:
        # Text is arbitrary bytes once; escape sequences must not reach the terminal.
        printable = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in block["text"])
        lines += ["", *(f"  | {line}" for line in printable.split("\n"))]
    return "\n".join(lines)


def _format_documents(documents: list[dict[str, Any]], padding: list[tuple[int, int]]) -> list[str]:
    said = {
        document["first"]: f"{document['last']}: {document['file']} {document['locator']}{_about(document)}"
        for document in documents[:_DOCUMENTS_SHOWN]
    }
    said |= {first: f"{last}: padding" for first, last in padding if (said and first <= max(said)) or len(documents) == len(said)}
    lines = [f"  tokens {first} to {said[first]}" for first in sorted(said)]
    more = len(documents) - _DOCUMENTS_SHOWN
    return [*lines, f"  and {more} more documents"] if more > 0 else lines


def _about(document: dict[str, Any]) -> str:
    # Of documents in foreign files nobody has counted the tokens.
    known = {
        f"{document['num_tokens']} tokens": document["num_tokens"] is not None,
        "begun before": document["begins_before"],
    }
    said = ", ".join(text for text, is_so in known.items() if is_so)
    return f" ({said})" if said else ""


def _format_catalog(content: dict[str, Any]) -> str:
    has_examples = any(row["has_mask"] for row in content["splits"])
    rows = [
        [
            row["source"],
            row["split"],
            format_count(row["num_tokens"]),
            f"{100 * row['num_tokens'] / content['num_train_tokens']:.1f}%" if row["split"] == "train" else "",
            format_count(row["num_documents"]),
            str(row["num_shards"]),
            format_count(row["bytes"]),
            *([f"{1 - row['num_padding'] / row['num_tokens']:.1%}" if row["has_mask"] else ""] if has_examples else []),
        ]
        for row in content["splits"]
    ]
    head = ["source", "split", "tokens", "share", "documents", "shards", "bytes", *(["filled"] if has_examples else [])]
    imported = [
        f"{row['source']} {row['split']} {row['num_imported_files']}" for row in content["splits"] if row["num_imported_files"]
    ]
    windows = f", examples packed into {content['example_tokens']}" if has_examples else ""
    return "\n".join(
        [
            f"{content['path']}: {format_count(content['num_train_tokens'])} training tokens of {len(content['sources'])} sources, "
            f"blocks of {content['block_tokens']}{windows}, vocabulary of {content['vocab_size']}",
            aligned([head, *rows]),
            *([f"files read where they lie: {', '.join(imported)}"] if imported else []),
            *format_sample(content["sample"]),
        ]
    )


def _format_mixture(content: dict[str, Any]) -> str:
    weights, intervals, searched = content["weights"], content["certainty"]["interval"], content["search"]
    scale = max([*weights.values(), *(high for _, high in intervals.values())])
    rows = []
    for name, weight in sorted(weights.items(), key=lambda item: -item[1]):
        low, high = intervals.get(name, (weight, weight))
        interval = f"{low:.4f} to {high:.4f}" if name in intervals else ""
        rows.append([name, f"{weight:.4f}", interval, _bar(low, weight, high, scale=scale or 1.0)])
    head = f"{content['path']}: {content['method']}"
    if searched["num_tokens"]:
        head += (
            f", {format_count(searched['num_tokens'])} tokens in {searched['seconds']:.0f} s, {searched['num_updates']} updates"
        )
    return f"{head}\n{aligned([['source', 'weight', '90% interval', ''], *rows])}"


def _bar(low: float, weight: float, high: float, *, scale: float) -> str:
    """Full up to the lower end of the interval, then half-toned up to the weight, then faint up to the upper end."""
    ends = [round(_BAR_CELLS * value / scale) for value in (low, weight, high)]
    return ("█" * ends[0] + "▓" * (ends[1] - ends[0]) + "░" * (ends[2] - ends[1])).ljust(_BAR_CELLS)


def _format_manifest(content: dict[str, Any]) -> str:
    rows = [
        [
            source["name"],
            f"{source['weight']:.4f}",
            f"{source['share']:.4f}",
            format_count(source["num_tokens"]),
            format_count(source["unique_tokens"]),
            f"{source['epochs']:.2f}",
            f"{source['max_epochs']:g}",
            "at its cap" if source["capped"] else "nothing" if source["weight"] and not source["num_tokens"] else "",
        ]
        for source in content["sources"]
    ]
    lines = [
        f"{content['path']}: {content['num_tokens']} tokens for a budget of {content['token_budget']}, {content['num_parts']} parts of "
        f"{content['num_shards']} shards under {content['root']}",
        *([content["continues"]] if content["continues"] else []),
        aligned([["source", "asked", "share", "tokens", "unique", "epochs", "at most", ""], *rows]),
    ]
    return "\n".join([*lines, *(["", _format_phases(content["phases"])] if len(content["phases"]) > 1 else [])])


def _format_phases(phases: list[dict[str, Any]]) -> str:
    """Shares of each phase that came out, and those asked for where they are others."""
    rows = [["phase", "tokens", "mixture"]]
    for number, phase in enumerate(phases):
        shares = [
            f"{name} {phase['shares'][name]:.4f}"
            + (f" (asked {weight:.4f})" if abs(weight - phase["shares"][name]) > 5e-4 else "")
            for name, weight in sorted(phase["weights"].items(), key=lambda item: -item[1])
            if weight
        ]
        rows.append([str(number), format_count(phase["num_tokens"]), and_more(shares, shown=8)])
    return aligned(rows, flush_left=(0, 2))
