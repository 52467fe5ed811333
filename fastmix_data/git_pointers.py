"""Small text files that stand for large ones in a git clone: their content was never downloaded."""

from __future__ import annotations

from fastmix_data.errors import InputError

# Git LFS says that its pointers are smaller; those of git-annex are one short line.
LARGEST_POINTER_BYTES = 1024
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = b"/annex/objects/"


def require_no_pointer(head: bytes, *, where: str, name: str) -> None:
    """Refuse a file whose first bytes are those of a Git LFS or git-annex pointer.

    Raises:
        InputError: names what fetches the content.
    """
    if head.startswith(_LFS):
        raise InputError(where, f"{name} is a Git LFS pointer, not the data", "run `git lfs pull` in its repository")
    if head.startswith(_ANNEX):
        raise InputError(where, f"{name} is a git-annex pointer, not the data", "run `git annex get .` in its repository")
