"""Which files of a folder the `datasets` library counts to a split; fastmix reads them itself where it knows the format.

Its own readers fix the types of all columns by the first file, so that an odd column that nobody asked for, or a first file without
text, would stop them; and they cannot be cut into parts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastmix_data.errors import InputError
from fastmix_data.messages import and_more, joined, shown
from pipelines.inputs.formats import ending_of, format_of, is_json
from pipelines.inputs.hub_datasets import explained
from pipelines.inputs.json_layout import only_object
from pipelines.inputs.walk import find_files

_DESCRIPTIONS = ("README.md", ".huggingface.yaml")


def files_of_split(folder: Path, *, name: str, config: str | None, split: str, where: str) -> list[str] | None:
    """Paths of the files of a split, in the library's order; None if only the library can read them.

    Raises:
        InputError: there is no such configuration or split, or files that are in none.
    """
    with explained(name, where, remedy="check dataset_config, or name the files with files: instead"):
        import datasets

        builder = datasets.load_dataset_builder(str(folder), name=config)
        splits = {str(key): list(map(str, paths)) for key, paths in (builder.config.data_files or {}).items()}
    if split not in splits:
        problem = f"{name!r} cannot be read (it has no split {split!r}, only {', '.join(splits)})"
        raise InputError(f"{where}.dataset", problem, "set dataset_split, or name the files with files: instead")
    if not _names_its_files(folder):
        _require_all_in_splits(folder, name, splits, where)
    kinds = [format_of(path) for path in splits[split]]
    # A text file is one document to us and many, one a line, to the library.
    is_ours = all(kind == "parquet" or (kind is not None and is_json(kind)) for kind in kinds)
    has_own_rules = any(getattr(builder.config, key, None) is not None for key in ("field", "filters"))
    return splits[split] if is_ours and not has_own_rules else None


def _names_its_files(folder: Path) -> bool:
    """Whether the folder's description says what belongs to which configuration: then it may well leave files out."""
    texts = [(folder / name).read_text(encoding="utf-8", errors="replace") for name in _DESCRIPTIONS if (folder / name).is_file()]
    return any(re.search(r"^configs:", text, re.MULTILINE) for text in texts)


def _require_all_in_splits(folder: Path, name: str, splits: dict[str, list[str]], where: str) -> None:
    """Refuse a folder of which the library would read a part in silence: it takes one format, and follows no links."""
    known = {os.path.realpath(path) for paths in splits.values() for path in paths}
    found = find_files("", base=str(folder), where=f"{where}.dataset").files
    left_out = [
        file
        for file in found
        if file.real_path not in known and (kind := format_of(file.path)) is not None
        # A .json file of one object beside the data describes it.
        if not (kind == "json" and only_object(file.path, file.num_bytes) is not None)
    ]
    if not left_out:
        return
    names = [shown(os.path.relpath(file.path, folder)) for file in left_out]
    endings = sorted({ending_of(path).lower() for path in [*known, *names]} - {""})
    problem = f"`datasets` would leave out {and_more(names)} of {name!r}"
    if len(endings) > 1:
        problem += f", which holds {joined(endings)} files; it reads one format of a folder"
    raise InputError(f"{where}.dataset", problem, f"name the files with files: instead, for example files: {name}")
