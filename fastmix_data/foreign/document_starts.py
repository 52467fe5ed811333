"""Which file beside a foreign file says where its documents begin, found by its name alone: rows of a catalog do not tell formats apart."""

from __future__ import annotations

from pathlib import Path

from fastmix_data.foreign.datatrove import DatatroveDocuments, documents_index
from fastmix_data.foreign.foreign_file import DocumentStarts
from fastmix_data.foreign.mds import MdsTokens, is_mds
from fastmix_data.foreign.megatron import megatron_documents
from fastmix_data.foreign.olmo import OlmoDocuments, documents_table


def documents_beside(path: Path, storage: str) -> DocumentStarts | None:
    """Documents of a file, or the samples of MDS; None where nothing says where they begin.

    Raises:
        InputError, CorruptArtefactError: what says so cannot be read.
    """
    if is_mds(storage):
        return MdsTokens(path, storage)
    where = str(path)
    if path.suffix == ".bin" and path.with_suffix(".idx").is_file():
        return megatron_documents(path, where=where)
    if (index := documents_index(path)).is_file():
        return DatatroveDocuments(index)
    return OlmoDocuments(table, where=where) if (table := documents_table(path)).is_file() else None
