"""How the tokens of a row of the catalog lie in their file: what is ours, and what is only looked at."""

from __future__ import annotations

from typing import Protocol

SHARD = "shard"  # a shard of ours, made from documents
TAIL = "tail"  # a shard of ours that holds the ends of foreign files: what is left of each after its last whole block
BORROWED = "borrowed"  # a shard of another workdir
FLAT = "flat"  # a foreign file that is nothing but tokens
MDS_PREFIX = "mds:"  # MDS, with the column and the type of its tokens: `mds:tokens:uint16`


class Stored(Protocol):
    """What a row of a catalog and a part of a manifest have in common: where blocks lie.

    `first_token` is the first one of block 0 within the file, for foreign files.
    """

    @property
    def path(self) -> str:
        """From the catalog's folder, or absolute."""
        ...

    @property
    def sha256(self) -> str:
        """See `identity.py`."""
        ...

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        ...

    @property
    def dtype(self) -> str:
        """That tokens are read as."""
        ...

    @property
    def has_mask(self) -> bool:
        """Whether only some tokens carry loss."""
        ...

    @property
    def storage(self) -> str:
        """One of the above."""
        ...

    @property
    def first_token(self) -> int:
        """Of block 0 in the file."""
        ...

    @property
    def mask_path(self) -> str:
        """As `path`; empty where there is no file of masks."""
        ...


def lies_in_workdir(storage: str) -> bool:
    """Whether the file is below the catalog's folder, at a path of ours; that of any other may lead anywhere.

    >>> lies_in_workdir("tail"), lies_in_workdir("borrowed"), lies_in_workdir("flat")
    (True, False, False)
    """
    return storage in (SHARD, TAIL)


def is_foreign(storage: str) -> bool:
    """Whether the file is no shard, but one of another tool.

    >>> is_foreign("tail"), is_foreign("flat"), is_foreign("mds:tokens:uint16")
    (False, True, True)
    """
    return storage == FLAT or storage.startswith(MDS_PREFIX)
