"""Small text files that stand for large ones in a git clone: their content was never downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from fastmix_data.errors import InputError

# Git LFS says that its pointers are smaller; those of git-annex are one short line.
_LARGEST_BYTES = 1024
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = b"/annex/objects/"


def may_be_pointer(num_bytes: int) -> bool:
    """Whether a file of this size has to be looked into."""
    return 0 < num_bytes < _LARGEST_BYTES


def require_no_pointer(path: str | os.PathLike[str], *, where: str, name: str) -> None:
    """Refuse a local file that is a pointer of Git LFS or git-annex.

    Raises:
        InputError: names what fetches the content.
    """
    # With few calls: there may be 100,000 small files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        head = os.read(descriptor, len(_LFS))
    finally:
        os.close(descriptor)
    require_no_pointer_in(head, where=where, name=name)


def require_no_pointer_among(folder: Path, *, where: str) -> None:
    """Refuse a folder with a pointer in it; raises as `require_no_pointer` does."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and may_be_pointer(path.stat().st_size):
            require_no_pointer(path, where=where, name=path.name)


def require_no_pointer_in(head: bytes, *, where: str, name: str) -> None:
    """Refuse the first bytes of a pointer; raises as `require_no_pointer` does."""
    if head.startswith(_LFS):
        raise InputError(where, f"{name} is a Git LFS pointer, not the data", "run `git lfs pull` in its repository")
    if head.startswith(_ANNEX):
        raise InputError(where, f"{name} is a git-annex pointer, not the data", "run `git annex get .` in its repository")
