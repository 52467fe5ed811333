"""The formats that `fastmix export` knows, by name."""

from __future__ import annotations

from importlib import import_module

from fastmix_data.exports.format import ExportFormat

# Modules are imported when a format is used: some need a package of the trainer's.
_MODULES = {
    "webdataset": "webdataset",
    "mds": "mds",
    "litdata": "litdata",
    "olmo": "olmo",
    "datatrove": "datatrove",
    "megatron": "nvidia.megatron",
    "nemo": "nvidia.nemo",
    "energon": "nvidia.energon",
}
NAMES = tuple(_MODULES)


def export_format(name: str) -> ExportFormat:
    """The format of one of NAMES; its module has it as FORMAT."""
    found: ExportFormat = import_module(f"fastmix_data.exports.{_MODULES[name]}").FORMAT
    return found
