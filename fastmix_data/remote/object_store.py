"""Ranges of bytes of objects in S3, another store that Arrow reads, or a shared folder; with retries, and one line at their end."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from fastmix_data.errors import CorruptArtefactError, FastmixError, InputError
from fastmix_data.messages import first_line

T = TypeVar("T")
# Two minutes in all, each shortened at random so that ranks do not come back at once: a store that throttles or a switch that restarts
# is there again by then, and what takes longer somebody has to look at.
RETRY_SECONDS = (0.1, 0.4, 1.5, 5.0, 10.0, 20.0, 40.0, 40.0)
_TIMEOUT_SECONDS = 10
_HASHED_AT_ONCE = 8 << 20
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID", "EXPIRED_TOKEN")
_NO_BUCKET = "NO_SUCH_BUCKET"
_CREDENTIALS = "check the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and that they may read it"


class Traffic(NamedTuple):
    """What was asked of a store: requests for bytes, others, and bytes."""

    num_reads: int
    num_looks: int
    num_bytes: int


class StoredObject(NamedTuple):
    """An object that was found; `version` changes with its content, and may do so without it."""

    file: Any
    num_bytes: int
    version: str


class ObjectStore:
    """A folder of objects. Its calls may come from many threads."""

    def __init__(self, url: str, *, retry_seconds: Iterable[float] = RETRY_SECONDS) -> None:
        """Connect to nothing yet.

        Args:
            url: `s3://bucket/prefix`, another URL that Arrow reads (`gs://`, `abfs://`, `hdfs://`), or an absolute path.

        Raises:
            InputError: it is no such address.
        """
        self.url, self._retry_seconds = url.rstrip("/"), tuple(retry_seconds)
        self._filesystem, self._folder = _filesystem_of(url)
        self._lock, self._num_reads, self._num_looks, self._num_bytes = threading.Lock(), 0, 0, 0
        self._has_warned = False

    @property
    def traffic(self) -> Traffic:
        """So far, by this process."""
        return Traffic(self._num_reads, self._num_looks, self._num_bytes)

    def address(self, path: str) -> str:
        """How messages name an object."""
        return f"{self.url.partition('?')[0]}/{path}"

    def find(self, path: str) -> StoredObject:
        """Look an object up, which takes one request.

        Raises:
            InputError: there is no such bucket, or no access to it.
            CorruptArtefactError: there is no such object.
            FastmixError: the store did not answer, again and again.
        """

        def found() -> StoredObject:
            place = f"{self._folder}/{path}"
            file = self._filesystem.open_input_file(place)
            version = next((value.decode() for name, value in (file.metadata() or {}).items() if name.lower() == "etag"), "")
            if not version:  # a folder has no other word for it
                version = str(self._filesystem.get_file_info(place).mtime_ns)
            return StoredObject(file, file.size(), version)

        with self._lock:
            self._num_looks += 1
        return self._retried(path, found)

    def read(self, path: str, found: StoredObject, *, start: int, stop: int) -> bytes:
        """A range of an object's bytes, in one request; raises as `find`."""

        def content() -> bytes:
            read: bytes = found.file.read_at(stop - start, start)
            if len(read) < stop - start:
                raise OSError(f"the answer ended after {len(read)} of {stop - start} bytes")
            return read

        with self._lock:
            self._num_reads += 1
            self._num_bytes += stop - start
        return self._retried(path, content)

    def sha256(self, path: str, found: StoredObject) -> str:
        """Of all of an object's bytes, which are fetched for it; raises as `find`."""
        digest = hashlib.sha256()
        for start in range(0, found.num_bytes, _HASHED_AT_ONCE):
            digest.update(self.read(path, found, start=start, stop=min(start + _HASHED_AT_ONCE, found.num_bytes)))
        return digest.hexdigest()

    def _retried(self, path: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        for seconds in (*self._retry_seconds, None):
            try:
                return work()
            except OSError as error:
                self._raise_if_final(path, error)
                if seconds is None:
                    times = f"{len(self._retry_seconds) + 1} times in {time.monotonic() - started:.0f} s"
                    problem = f"the store does not answer, tried {times} ({_said(error)})"
                    raise FastmixError(
                        self.address(path), problem, "see that it is reachable, and run the same command again"
                    ) from error
                if not self._has_warned:
                    self._has_warned = True
                    warnings.warn(f"{self.address(path)}: {_said(error)}; trying again", stacklevel=4)
                time.sleep(seconds * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")

    def _raise_if_final(self, path: str, error: OSError) -> None:
        """Raise what no second try would change."""
        said, where = str(error), self.address(path)
        if isinstance(error, PermissionError) or any(code in said for code in _REFUSED):
            raise InputError(where, "access is denied", _CREDENTIALS) from error
        if isinstance(error, FileNotFoundError) or _NO_BUCKET in said:
            if not self._has_root():
                raise InputError(
                    self.address("").rstrip("/"), "there is no such bucket or folder", "check storage.shards"
                ) from error
            remedy = "copy WORKDIR/shards there, for example with `aws s3 sync`"
            raise CorruptArtefactError(where, "there is no such object, which the catalog names", remedy) from error

    def _has_root(self) -> bool:
        """Whether the bucket, or the shared folder, is there."""
        from pyarrow import fs

        is_local = isinstance(self._filesystem, fs.LocalFileSystem)
        root = self._folder if is_local else self._folder.partition("/")[0]
        try:
            return bool(self._filesystem.get_file_info(root).type != fs.FileType.NotFound)
        except OSError:
            return True  # no right to look at buckets does not mean that there is none


def _said(error: OSError) -> str:
    """What went wrong, without the names that the message begins with anyway."""
    return first_line(error).rpartition(": AWS Error ")[2]


def _filesystem_of(url: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        filesystem, folder = fs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        problem = f"'{url}' is no address that can be read ({first_line(error)})"
        raise InputError("storage.shards", problem, "give s3://BUCKET/PREFIX or a folder") from error
    if isinstance(filesystem, fs.S3FileSystem):
        # Tried once by the SDK and again by us: one place that waits, and says so. The region is the bucket's, which Arrow looked up.
        options = dict(parse_qsl(urlsplit(url).query))
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        scheme, _, host = endpoint.rpartition("://")
        filesystem = fs.S3FileSystem(
            region=filesystem.region,
            scheme=options.get("scheme") or scheme or None,
            endpoint_override=options.get("endpoint_override") or host or None,
            connect_timeout=_TIMEOUT_SECONDS,
            request_timeout=_TIMEOUT_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )
    return filesystem, folder.rstrip("/")
