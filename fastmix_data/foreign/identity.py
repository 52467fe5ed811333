"""Whether a file is what it was. Ours are hashed whole; to read 30 TB of foreign tokens for it is out of the question, so that of these
a sample is hashed, and what is recorded says so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fastmix_data.atomic_files import sha256_of_file
from fastmix_data.foreign.storage import Stored, is_foreign

SAMPLED = "sampled:"
_PAGES, _PAGE_BYTES = 64, 16_384


def sampled_identity(paths: Iterable[Path]) -> str:
    """SHA-256 of the sizes of files and of 64 evenly spaced pages of 16 KiB of each, the first and the last among them.

    Files of up to 1 MiB are hashed whole. Of larger ones it sees that a file was cut, lengthened, swapped or written anew, not that a
    single token of it was changed.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{size} ".encode())
        with path.open("rb", buffering=0) as file:
            for page in range(_PAGES):
                file.seek(
                    max(0, size - _PAGE_BYTES) * page // (_PAGES - 1) if size > _PAGES * _PAGE_BYTES else page * _PAGE_BYTES
                )
                digest.update(file.read(_PAGE_BYTES))
    return SAMPLED + digest.hexdigest()


def identity_now(stored: Stored, *, root: Path) -> str:
    """What a row or part would record as its `sha256` if it was made now.

    Raises:
        FileNotFoundError: the file or its mask has gone.
    """
    path = root / stored.path
    if not is_foreign(stored.storage):
        return sha256_of_file(path)
    return sampled_identity([path, root / stored.mask_path] if stored.mask_path else [path])
