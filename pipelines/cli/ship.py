"""Commands that make a mixture into a corpus, and look at what is on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmix_data.errors import RecipeError
from fastmix_data.machine import Workers
from pipelines.cli.options import Bytes, PathType, Replace, TokenCount, command, recipe_command, with_workers
from pipelines.console import Console

if TYPE_CHECKING:
    from fastmix_data.recipe.recipe import Recipe


@click.command()
@click.option("--mixture", "mixture_path", type=PathType, help="A mixture of your own; the search's by default.")
@click.option("--out", "directory", type=PathType, help="Folder to write; WORKDIR/manifest by default.")
@click.option(
    "--after",
    "after_tokens",
    type=TokenCount(),
    metavar="TOKENS",
    help="Write the rest of a run that has trained on so many tokens (sequences times their length, from its very start).",
)
@click.option(
    "--of", "continued_path", type=PathType, metavar="MANIFEST", help="With --after: what it reads; the workdir's by default."
)
@click.option(
    "--sequence-length",
    type=click.IntRange(1),
    help="With --after: the length it reads in; a block by default. The rest keeps it.",
)
@Replace
@recipe_command
def emit(
    recipe: Recipe,
    mixture_path: Path | None,
    directory: Path | None,
    after_tokens: int | None,
    continued_path: Path | None,
    sequence_length: int | None,
    replace: bool,
    console: Console,
) -> None:
    """Turn mixture and token budget into a token-exact manifest."""
    from fastmix_data.audit.inspection import format_inspection, inspect
    from fastmix_data.manifest.manifest import Manifest
    from pipelines import flow

    after = None
    if after_tokens is not None:
        after = flow.HalfTrained(after_tokens, continued_path, sequence_length)
    elif continued_path is not None or sequence_length is not None:
        option = f"--of {continued_path}" if continued_path is not None else f"--sequence-length {sequence_length}"
        raise RecipeError(option, "says which run is to go on, but not from where", "give --after TOKENS too")
    manifest = flow.emit(recipe, mixture_path=mixture_path, directory=directory, after=after, replace=replace)
    if isinstance(manifest, Manifest) and manifest.after is not None and manifest.after.tokens != after_tokens:
        whole = f"{manifest.after.num_sequences} sequences of {manifest.after.sequence_length}"
        console.say(f"--after {after_tokens} is rounded to {manifest.after.tokens}, which are {whole}")
    console.say(manifest.message)
    contents = inspect(manifest.path)
    console.result({"did_work": manifest.did_work, **contents}, format_inspection(contents))


@click.command()
@click.argument("manifest_path", metavar="[MANIFEST]", type=PathType, required=False)
@click.option("--to", "to", required=True, metavar="FORMAT", help="Whose format to write; `list` shows them all.")
@click.option("--out", "directory", type=PathType, help="Folder to write; MANIFEST/../export-FORMAT by default.")
@click.option(
    "--files",
    type=click.Choice(["reference", "hardlink", "copy"]),
    default="reference",
    show_default=True,
    help="Whole shards, where the format takes them as they are: name them where they are, or put them into the folder.",
)
@click.option(
    "--max-file-bytes",
    type=Bytes(),
    default="2GiB",
    show_default=True,
    help="A file of converted tokens is closed before it is larger.",
)
@click.option("--no-check", is_flag=True, help="Do not hash the shards first.")
@Replace
@command
@with_workers
def export(
    manifest_path: Path | None,
    to: str,
    directory: Path | None,
    files: Any,
    max_file_bytes: int,
    no_check: bool,
    replace: bool,
    workers: Workers,
    console: Console,
) -> None:
    """Write a manifest in the format of a production trainer."""
    from fastmix_data.workdir import Workdir
    from pipelines.export.formats_table import formats_table, known_format
    from pipelines.export.run import export as work

    if to == "list":
        console.result(*formats_table())
        return
    name = known_format(to)
    if manifest_path is None:
        raise RecipeError("export", "no manifest is given", f"write fastmix export MANIFEST --to {name}")
    folder = manifest_path if manifest_path.is_dir() else manifest_path.parent
    exported = work(
        manifest_path,
        to=name,
        directory=directory or Workdir(folder.parent).export(name),
        files=files,
        max_file_bytes=max_file_bytes,
        check_shards=not no_check,
        workers=workers,
        replace=replace,
    )
    console.say(*exported.remarks)
    console.result(exported.as_dict(), exported.message)


@click.command()
@click.argument("manifest_path", metavar="MANIFEST", type=PathType)
@click.option("--out", "directory", type=PathType, required=True, help="Folder to write.")
@click.option("--sequence-length", type=click.IntRange(1), help="Tokens of a sample; the manifest's block_tokens by default.")
@click.option(
    "--max-shard-bytes", type=Bytes(), default="256MiB", show_default=True, help="A shard is closed before it is larger."
)
@Replace
@command
@with_workers
def materialize(
    manifest_path: Path,
    directory: Path,
    sequence_length: int | None,
    max_shard_bytes: int,
    replace: bool,
    workers: Workers,
    console: Console,
) -> None:
    """Write a manifest's run as shards whose sequences lie in its order.

    What it writes is itself a manifest: of one pass over these shards, one after another.
    """
    from pipelines.export.run import export as work

    written = work(
        manifest_path,
        to="shards",
        directory=directory,
        max_file_bytes=max_shard_bytes,
        sequence_length=sequence_length,
        workers=workers,
        replace=replace,
    )
    console.say(*written.remarks)
    console.result(written.as_dict(), written.message)


@click.command()
@click.argument("path", metavar="PATH", type=PathType)
@click.option("--store", metavar="URL", help="Where the shards were copied to, as in storage.shards: check the copies.")
@command
def verify(path: Path, store: str | None, console: Console) -> None:
    """Re-hash a shard, catalog, manifest or workdir, and list all that is wrong."""
    from fastmix_data.audit.verify import verify as work

    report = work(path, store=store, quiet=console.is_quiet)
    console.result(report.as_dict(), str(report))
    if not report.ok:
        sys.exit(2)


@click.command()
@click.argument("path", metavar="PATH", type=PathType)
@click.option("--block", type=click.IntRange(0), help="Show the text and documents of this block of a shard.")
@command
def inspect(path: Path, block: int | None, console: Console) -> None:
    """Say what is in a shard, catalog, mixture or manifest."""
    from fastmix_data.audit.inspection import format_inspection
    from fastmix_data.audit.inspection import inspect as work

    contents = work(path, block=block)
    console.result(contents, format_inspection(contents))
