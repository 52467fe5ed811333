"""The formats that `fastmix export` knows, by name."""

from __future__ import annotations

from importlib import import_module

from fastmix_data.exports.format import ExportFormat
from fastmix_data.recipe.exports import EXPORT_NAMES

NAMES = EXPORT_NAMES
# Folders of modules that are not beside this one.
_FOLDERS = {
    "shards": "materialized.",
    "megatron": "nvidia.",
    "nemo": "nvidia.",
    "energon": "nvidia.",
    "olmo": "flat.",
    "datatrove": "flat.",
}


def export_format(name: str) -> ExportFormat:
    """The format of one of NAMES, which its module has as FORMAT; imported only now, for some need a package of the trainer's."""
    found: ExportFormat = import_module(f"fastmix_data.exports.{_FOLDERS.get(name, '')}{name}").FORMAT
    assert found.name == name
    return found
