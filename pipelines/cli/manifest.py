"""Commands that look into manifests: how two differ, and what a step of training read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.options import PathType, command

if TYPE_CHECKING:
    from pipelines.console import Console


@click.group()
def manifest() -> None:
    """Look into manifests."""


@manifest.command()
@click.argument("one_path", metavar="A", type=PathType)
@click.argument("other_path", metavar="B", type=PathType)
@command
def diff(one_path: Path, other_path: Path, console: Console) -> None:
    """Say in what two manifests differ: budget, mixture, tokens and epochs by source, phases, catalog, order."""
    from fastmix_data.audit.manifest_diff import format_manifest_diff, manifest_diff
    from fastmix_data.manifest.manifest import load_manifest

    one, other = load_manifest(one_path), load_manifest(other_path)
    contents = manifest_diff(one, other)
    console.result(contents, format_manifest_diff(contents, one, other))


@click.command()
@click.argument("manifest_path", metavar="MANIFEST", type=PathType)
@click.option("--step", type=click.IntRange(0), required=True, help="Counted from 0, of this manifest.")
@click.option("--batch-size", type=click.IntRange(1), required=True, help="Sequences of one rank at a step.")
@click.option("--sequence-length", type=click.IntRange(1), required=True, help="Tokens of a sequence.")
@click.option("--ranks", "num_ranks", type=click.IntRange(1), default=1, show_default=True, help="Ranks that read together.")
@click.option("--rank", type=click.IntRange(0), help="Only what this rank read; all of them by default.")
@click.option("--root", type=PathType, help="Workdir with the documents, if not where the manifest says.")
@command
def trace(
    manifest_path: Path,
    step: int,
    batch_size: int,
    sequence_length: int,
    num_ranks: int,
    rank: int | None,
    root: Path | None,
    console: Console,
) -> None:
    """Name the documents that a step of training read, out of which files."""
    from fastmix_data.audit.trace import TracedStep, format_trace
    from fastmix_data.audit.trace import trace as work
    from fastmix_data.manifest.manifest import load_manifest

    contents = work(load_manifest(manifest_path), TracedStep(step, batch_size, sequence_length, num_ranks, rank), root=root)
    console.result(contents, format_trace(contents))
