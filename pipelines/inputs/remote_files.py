"""Files that a URL of the recipe names, through fsspec; by the rules of `walk.py`."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastmix_data.errors import InputError
from fastmix_data.git.pointers import may_be_pointer, require_no_pointer_in
from fastmix_data.messages import first_line
from pipelines.inputs.formats import format_of

# Of many small objects the first ones tell; to open each of 100,000 would take hours.
_OPENED_FOR_POINTERS = 64


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL.

    Attributes:
        is_exact: whether the user wrote this very address.
        version: the store's word for it; without any, only a change of size is noticed.
    """

    url: str
    num_bytes: int
    version: str
    is_exact: bool


def is_url(path: str) -> bool:
    """Whether a pattern of the recipe is read through fsspec."""
    return "://" in path and not path.startswith(_LOCAL)


_LOCAL = ("file://", "local://")


def without_local_scheme(pattern: str) -> str:
    """A path for a URL of this machine: these files are found, and told apart, like any other of its files."""
    return pattern.partition("://")[2] if pattern.startswith(_LOCAL) else pattern


def find_remote_files(pattern: str, *, where: str) -> list[RemoteFile]:
    """Files that a URL, a glob of URLs or the URL of a folder names.

    Raises:
        InputError: there are none, the store cannot be listed, or does not say how large a file is.
    """
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        # Over HTTP every page is a "folder" of the links on it, and a question mark begins the query.
        is_web = pattern.startswith("http")
        if filesystem.exists(path) and (is_web or not filesystem.isdir(path)):
            matches, is_exact = {path: filesystem.info(path)}, True
        else:
            matches, is_exact = _matches(filesystem, path), False
        found = [
            _remote_file(filesystem.unstrip_protocol(name), info, where, is_exact=is_exact)
            for name, info in sorted(matches.items())
        ]
        _require_no_pointers(
            filesystem, [name for name in sorted(matches) if may_be_pointer(matches[name].get("size") or 0)], where
        )
    except ImportError as error:
        raise InputError(where, f"'{pattern}' needs a package that is not installed ({error})", "install it") from error
    except (OSError, ValueError, TypeError) as error:
        problem = f"'{pattern}' cannot be listed ({first_line(error)})"
        raise InputError(where, problem, "check address and access") from error
    if not found:
        raise InputError(where, f"nothing is at '{pattern}'", "check the address")
    return found


def _matches(filesystem: Any, path: str) -> dict[str, Mapping[str, Any]]:
    """Visible files of a glob or a folder, by name."""
    pattern = _escape_existing(filesystem, path)
    matches: dict[str, Mapping[str, Any]] = {path: {"type": "directory"}}
    if glob.has_magic(path) and not filesystem.isdir(path):
        matches = _visible(filesystem.glob(pattern, detail=True), pattern)
    elif not filesystem.isdir(path):
        matches = {}
    for folder in [name for name, info in matches.items() if info["type"] == "directory"]:
        del matches[folder]
        matches |= _visible(filesystem.find(folder, detail=True), folder)
    return matches


def _escape_existing(filesystem: Any, path: str) -> str:
    """The path with those parts escaped that look like a pattern and exist as they are."""
    parts = path.split("/")
    for number, part in enumerate(path.split("/")):
        if ("[" in part or "?" in part) and filesystem.exists("/".join([*path.split("/")[:number], part])):
            parts[number] = glob.escape(part)
    return "/".join(parts)


def _visible(found: Mapping[str, Mapping[str, Any]], pattern: str) -> dict[str, Mapping[str, Any]]:
    """What was found without a hidden part, or with no more of them than the user wrote."""
    num_written = f"/{pattern}".count("/.")
    return {name: info for name, info in found.items() if f"/{name}".count("/.") <= num_written}


def _require_no_pointers(filesystem: Any, names: list[str], where: str) -> None:
    for name in [name for name in names if format_of(name) is not None][:_OPENED_FOR_POINTERS]:
        require_no_pointer_in(filesystem.cat_file(name), where=where, name=filesystem.unstrip_protocol(name))


def _remote_file(url: str, info: Mapping[str, Any], where: str, *, is_exact: bool) -> RemoteFile:
    if info.get("size") is None:
        raise InputError(where, f"the server does not say how large {url} is", "download it first")
    version = next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), "")
    return RemoteFile(url, int(info["size"]), version, is_exact)
