"""Whole files that an export uses as they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fastmix_data.atomic_files import atomic_file
from fastmix_data.errors import FastmixError
from fastmix_data.exports.format import Files


def bring(source: Path, name: str, *, directory: Path, files: Files) -> Path:
    """Have a file under a name in an export's folder: as a symbolic link to it (`reference`), a hard link, or a copy.

    Raises:
        FastmixError: the file system does not link these two.
    """
    target = directory / name
    # Paths of imports lead out of the workdir, and would lead out of the export too: what is written there is deleted with it.
    assert Path(os.path.normpath(target)).is_relative_to(directory), name
    assert os.path.realpath(target.parent) != os.path.realpath(source.parent) or target.name != source.name, source
    if target.exists() and target.samefile(source) and target.is_symlink() == (files == "reference"):
        return target
    if files == "copy":
        with source.open("rb") as reader, atomic_file(target) as writer:
            shutil.copyfileobj(reader, writer, 1 << 24)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        if files == "reference":
            target.symlink_to(source)
        else:
            os.link(source, target)
    except OSError as error:
        kind = "symbolic" if files == "reference" else "hard"
        raise FastmixError(
            target, f"cannot be a {kind} link to {source} ({error.strerror})", "export with --files copy"
        ) from error
    return target
