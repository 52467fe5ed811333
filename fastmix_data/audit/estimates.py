"""What is estimated, where only a sample of the sources is there: sizes in the catalog, and the plan of a manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastmix_data.manifest.estimated import COMPLETE, load_plan
from fastmix_data.text_table import aligned
from fastmix_data.units import format_count
from fastmix_data.workdir import ManifestFolder


def inspect_plan(path: Path) -> dict[str, Any]:
    """What is in a plan, given its file or its folder."""
    plan = load_plan(ManifestFolder(path).plan if path.is_dir() else path)
    content = {key: value for key, value in asdict(plan).items() if key not in ("directory", "did_work", "doubts")}
    return {"kind": "plan", "path": str(plan.path), "estimated": True, "doubts": list(plan.doubts), **content}


def format_sample(sample: dict[str, Any] | None) -> list[str]:
    """Lines on the whole of what a catalog holds a sample of; none where it holds all."""
    if sample is None:
        return []
    rows = [
        [name, f"{100 * of['fraction']:.2g}%", *(format_count(of[key]) for key in ("num_tokens", "low", "high"))]
        for name, of in sample["sources"].items()
    ]
    head = "a sample: of these sources the whole is estimated (90% interval); `fastmix preprocess --all` makes the rest"
    return [head, aligned([["source", "documents here", "training tokens in all", "low", "high"], *rows])]


def format_plan(content: dict[str, Any]) -> str:
    """What `inspect_plan` found, for people."""
    rows = [
        [
            source["name"],
            f"{source['weight']:.4f}",
            f"{source['share']:.4f}",
            format_count(source["num_tokens"]),
            format_count(source["unique_tokens"]),
            f"{format_count(source['unique_low'])} to {format_count(source['unique_high'])}" if source["estimated"] else "",
            f"{source['epochs']:.2f}",
            f"{source['epochs_low']:.2f} to {source['epochs_high']:.2f}" if source["estimated"] else "",
            f"{source['max_epochs']:g}",
            "estimated" if source["estimated"] else "exact",
            "at its cap" if source["capped"] else "",
        ]
        for source in content["sources"]
    ]
    head = ["source", "asked", "share", "tokens", "unique", "90% interval", "epochs", "90% interval", "at most", "sizes", ""]
    return "\n".join(
        [
            f"{content['path']}: a plan of {content['num_tokens']} tokens for a budget of {content['token_budget']}, with estimates",
            aligned([head, *rows]),
            *content["doubts"],
            COMPLETE,
        ]
    )
