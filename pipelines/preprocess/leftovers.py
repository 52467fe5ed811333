"""The workdir of a preprocess run: who holds it, what it was made from, what in it is left over from a run that was stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmix_data.artefacts import PARTIAL_SUFFIX, exclusive_lock, read_json
from fastmix_data.errors import FastmixError, MismatchError
from fastmix_data.recipe.recipe import Recipe
from pipelines.preprocess.partitions import Partition
from pipelines.preprocess.receipts import Receipt, changed_file

SECTIONS_FILE = "preprocess.recipe.json"
_FOLDERS = ("shards", "documents", "receipts", "tokenizer")
_REMEDY = "run `fastmix preprocess --replace` to make them anew, or name another workdir"


@contextmanager
def hold_workdir(root: Path) -> Iterator[None]:
    """Keep other preprocess runs out of a workdir; the lock goes with the process, however it ends.

    Raises:
        FastmixError: another run holds it, or the folder cannot be made.
    """
    lock = root / ".preprocess.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise FastmixError(f"{root}: the workdir cannot be written to ({error.strerror}); name another workdir") from error
    with exclusive_lock(lock, command="preprocess"):
        yield


def preprocess_sections(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that decide what preprocess writes, as JSON."""
    targets = {name: files.model_dump(mode="json", exclude={"weight"}) for name, files in recipe.target.files.items()}
    return {
        "tokenizer": recipe.tokenizer.model_dump(mode="json"),
        "sources": {name: section.model_dump(mode="json") for name, section in recipe.sources.items()},
        "order of sources": list(recipe.sources),
        "shards": recipe.shards.model_dump(mode="json"),
        "target": {"files": targets},
    }


def require_same_sections(root: Path, sections: Mapping[str, Any]) -> None:
    """Refuse a recipe that differs from the one the workdir's shards were made from.

    Raises:
        MismatchError: names the keys that differ.
    """
    path = root / SECTIONS_FILE
    if not path.exists():
        return
    before, now = _flat(read_json(path)), _flat(sections)
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    if keys:
        listed = "; ".join(f"{key} was {before.get(key, 'not given')!r}, is {now.get(key, 'not given')!r}" for key in keys[:4])
        more = f" (and {len(keys) - 4} more)" if len(keys) > 4 else ""
        raise MismatchError(f"{root}: its shards were made from another recipe: {listed}{more}; {_REMEDY}")


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping) or not content:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return {key: value for key, value in flat.items() if value is not None}


def require_same_files(root: Path, plan: Iterable[Partition], receipts: Mapping[str, Receipt], *, is_complete: bool) -> None:
    """Refuse source files that are not what the workdir's shards were made from.

    Args:
        is_complete: whether the receipts are those of all partitions, so that a file without one is new.
    Raises:
        MismatchError: names the first file that was added, removed or changed.
    """
    partitions = list(plan)
    planned = {name for partition in partitions for name in _names(partition)}
    known = {file.name for receipt in receipts.values() for file in receipt.files}
    for name in sorted(known - planned):
        raise MismatchError(f"{name}: was removed since the shards in {root} were made from it; put it back, {_REMEDY}")
    for name in sorted(planned - known) if is_complete else ():
        raise MismatchError(f"{name}: was added since the shards in {root} were made; {_REMEDY}")
    for partition in partitions:
        receipt = receipts.get(partition.label)
        changed = None if receipt is None else changed_file(partition, receipt)
        if changed is not None:
            raise MismatchError(f"{changed}: changed since the shards in {root} were made from it; {_REMEDY}")


def _names(partition: Partition) -> Sequence[str]:
    return [partition.dataset.name] if partition.dataset is not None else [file.name for file in partition.files]


def remove_leftovers(root: Path, receipts: Mapping[str, Receipt]) -> None:
    """Remove half-written files, and shards, tables and receipts that none of the given receipts speaks of."""
    kept = {root / row.path for receipt in receipts.values() for row in receipt.shards}
    kept |= {root / receipt.documents for receipt in receipts.values()}
    kept |= {root / "receipts" / f"{label}.json" for label in receipts}
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            is_ours = folder != "tokenizer" and path.suffix in (".tar", ".parquet", ".json")
            if path.is_file() and (path.name.endswith(PARTIAL_SUFFIX) or (is_ours and path not in kept)):
                path.unlink()
    for path in root.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink()
