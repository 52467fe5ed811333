"""Sources read through the `datasets` library: a hub name, a `save_to_disk` folder, or a folder of a format that only it knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from fastmix_data.errors import FastmixError, InputError
from fastmix_data.git.pointers import may_be_pointer, require_no_pointer
from fastmix_data.messages import first_line, shown
from fastmix_data.recipe.sources import TextSection
from pipelines.inputs.columns import check_columns, needed_columns
from pipelines.inputs.walk import find_files

_ROWS_OF_A_BATCH = 256
_SECONDS_TO_CONNECT = 10
_HUB_REMEDY = "check the name (there is no such folder), dataset_config, dataset_split and the network"
_LOCAL_REMEDY = "check dataset_config and dataset_split, or name the files with files: instead"


@dataclass(frozen=True)
class DatasetInput:
    """A dataset, pinned.

    Attributes:
        name: as the recipe says it.
        path: absolute folder, or hub name.
        kind: `saved` by save_to_disk, or `streamed`.
        num_shards: parts that are read independently.
        version: what changes when the data does: the hub's commit, or sizes and times of the folder's files.
    """

    name: str
    path: str
    kind: Literal["saved", "streamed"]
    config: str | None
    split: str
    num_shards: int
    num_bytes: int
    version: str
    columns: tuple[str, ...] | None


def resolve_dataset(
    name: str, *, local: Path, config: str | None, split: str, where: str, max_partition_bytes: int
) -> DatasetInput:
    """Find a dataset and how it is cut into shards.

    Args:
        local: a folder, if there is one of this name.
    Raises:
        InputError: there is none of this name, split or configuration, or the hub cannot be reached.
    """
    with explained(name, where, remedy=_LOCAL_REMEDY if local.is_dir() else _HUB_REMEDY):
        if not local.is_dir():
            # Pinned to the commit of now: the plan, every worker and a run that goes on tomorrow read the same data.
            commit = _hub_commit(name)
            return _streamed_input(name, name, config, split, num_bytes=0, version=commit, revision=commit)
        files = sorted(find_files("", base=str(local), where=f"{where}.dataset").files, key=lambda file: file.path)
        for file in files:
            if may_be_pointer(file.num_bytes):
                require_no_pointer(file.path, where=f"{where}.dataset", name=shown(os.path.relpath(file.path, local)))
        num_bytes = sum(file.num_bytes for file in files)
        # Sizes and times of all its files: which of them belong to a split or a configuration only the library knows.
        version = ";".join(f"{shown(os.path.relpath(file.path, local))}:{file.num_bytes}:{file.mtime_ns}" for file in files)
        if is_saved(local):
            opened = _open_saved(str(local), split)
            # It is mapped from disk and can be entered anywhere; a streamed one is cut where its files are.
            num_shards = max(1, -(-opened.data.nbytes // max_partition_bytes))
            columns = tuple(opened.column_names)
            return DatasetInput(name, str(local), "saved", config, split, num_shards, num_bytes, version, columns)
        return _streamed_input(name, str(local), config, split, num_bytes=num_bytes, version=version, revision=None)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _hub_commit(name: str) -> str:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, timeout=_SECONDS_TO_CONNECT).sha or ""
    except Exception as error:  # which classes depends on the HTTP library that the hub's client was built on
        raise OSError(first_line(error)) from error


def _streamed_input(
    name: str, path: str, config: str | None, split: str, *, num_bytes: int, version: str, revision: str | None
) -> DatasetInput:
    opened = _open_streamed(path, config, split, revision)
    columns = tuple(opened.column_names) if opened.column_names else None
    return DatasetInput(name, path, "streamed", config, split, opened.num_shards, num_bytes, version, columns)


def _open_saved(path: str, split: str) -> Any:
    import datasets

    loaded = datasets.load_from_disk(path)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ValueError(f"it has no split {split!r}, only {', '.join(map(str, loaded))}")
        return loaded[split]
    return loaded


def _open_streamed(path: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    return datasets.load_dataset(path, name=config, split=split, streaming=True, revision=revision or None)


def read_dataset_shard(dataset: DatasetInput, shard: int, *, section: TextSection, where: str) -> Iterator[tuple[int, pa.Table]]:
    """Yield (number of the first row, table of a few hundred rows) of one shard.

    Raises:
        InputError: it cannot be read, lacks a column, or holds something else than text in it.
    """
    is_local = Path(dataset.path).is_dir()
    with explained(dataset.name, where, remedy=_LOCAL_REMEDY if is_local else _HUB_REMEDY):
        if dataset.kind == "saved":
            whole = _open_saved(dataset.path, dataset.split)
            start, stop = (number * len(whole) // dataset.num_shards for number in (shard, shard + 1))
            opened, first = whole.select(range(start, stop)), start
        else:
            streamed = _open_streamed(dataset.path, dataset.config, dataset.split, None if is_local else dataset.version)
            opened, first = streamed.shard(dataset.num_shards, shard), 0
        # Nobody has to understand, or to load, what nobody asked for.
        place = f"{where}: dataset {dataset.name}"
        if opened.column_names is not None:
            opened = opened.select_columns(needed_columns(opened.column_names, section, place))
        for table in opened.with_format("arrow").iter(batch_size=_ROWS_OF_A_BATCH):
            yield first, table.select(check_columns(table.schema, section, place))
            first += len(table)


@contextmanager
def explained(name: str, where: str, *, remedy: str) -> Iterator[None]:
    """Turn whatever the library raises into one line."""
    try:
        yield
    except FastmixError:
        raise
    except Exception as error:  # it has many classes of its own, and passes on those of every library below it
        # Its own errors wrap the one that says what happened.
        cause = error.__cause__ if error.__cause__ is not None and type(error).__module__.startswith("datasets") else error
        problem = f"{name!r} cannot be read ({first_line(cause)})"
        raise InputError(f"{where}.dataset", problem, remedy) from error
