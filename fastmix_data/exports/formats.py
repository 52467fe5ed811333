"""The formats that `fastmix export` knows, by name."""

from __future__ import annotations

from importlib import import_module

from fastmix_data.exports.format import ExportFormat

# Modules are imported when a format is used: some need a package of the trainer's.
NAMES = ("webdataset", "mds", "litdata", "olmo", "datatrove")


def export_format(name: str) -> ExportFormat:
    """The format of one of NAMES; its module is called so, and has it as FORMAT."""
    found: ExportFormat = import_module(f"fastmix_data.exports.{name}").FORMAT
    return found
