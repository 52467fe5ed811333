"""Where the shards of a workdir were copied to, and what of them is kept on this machine."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

from fastmix_data.foreign.storage import is_foreign
from fastmix_data.remote.object_store import ObjectStore, StoredObject
from fastmix_data.remote.slot_files import SlotFiles
from fastmix_data.workdir import SHARDS_FOLDER

In = TypeVar("In")
Out = TypeVar("Out")
DEFAULT_CACHE_BYTES = 10 * 10**9
# Enough to hide 20 ms behind 3,000 requests a second, and few enough for the connections that S3 gives a client.
_REQUESTS_AT_ONCE = 64
_KNOWN_SECONDS = 300.0  # after so long an object is looked up again, as it may have been replaced
_MOST_OPEN = 1024


@dataclass(frozen=True)
class ShardStore:
    """Settings of a store and its cache; it can be sent to other processes.

    Attributes:
        url: what `WORKDIR/shards` was copied to: `s3://bucket/prefix`, another URL that Arrow reads, or a folder.
        cache: folder on this machine, which all processes of the machine may share.
        cache_bytes: what it may take of the disk.
    """

    url: str
    cache: str
    cache_bytes: int = DEFAULT_CACHE_BYTES

    @property
    def opened(self) -> OpenStore:
        """The store as this process reads it; raises as `ObjectStore` and `SlotFiles` do."""
        return _opened(self, os.getpid())  # threads, and what Arrow keeps for S3, do not live on in a fork


def lies_in_store(path: str, storage: str) -> bool:
    """Whether a file of a catalog is one that is copied to a store: all shards of ours are, files of others stay where they are."""
    return path.startswith(f"{SHARDS_FOLDER}/") and not is_foreign(storage)


def name_in_store(path: str) -> str:
    """Of a shard, by its path in the catalog."""
    return path.removeprefix(f"{SHARDS_FOLDER}/")


def is_on_one_machine(num_ranks: int) -> bool:
    """Whether all ranks of a run share this machine's cache; launchers say so."""
    return num_ranks == 1 or os.environ.get("LOCAL_WORLD_SIZE") == str(num_ranks)


@lru_cache(maxsize=4)
def _opened(settings: ShardStore, process: int) -> OpenStore:  # noqa: ARG001
    return OpenStore(settings)


class OpenStore:
    """A store, its cache and the threads that fetch.

    Attributes:
        objects: what is fetched from.
        slots: what is kept.
    """

    def __init__(self, settings: ShardStore) -> None:
        """Connect to nothing yet; raises as `ShardStore.opened`."""
        self.settings = settings
        self.objects = ObjectStore(settings.url)
        self.slots = SlotFiles(Path(settings.cache), max_bytes=settings.cache_bytes, most_open=_MOST_OPEN)
        self._found: OrderedDict[str, tuple[float, StoredObject]] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="fastmix-fetch")

    def at_once(self, work: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
        """Do something for many items concurrently; the first error of any is raised."""
        listed = list(items)
        return [work(listed[0])] if len(listed) == 1 else list(self._threads.map(work, listed))

    def find(self, path: str) -> tuple[StoredObject, bool]:
        """Look up a shard by its path in the catalog, and say whether the store was asked; raises as `ObjectStore.find`."""
        now = time.monotonic()
        with self._lock:
            known = self._found.get(path)
            if known is not None and now - known[0] < _KNOWN_SECONDS:
                self._found.move_to_end(path)
                return known[1], False
        found = self.objects.find(name_in_store(path))
        with self._lock:
            self._found[path] = (now, found)
            self._found.move_to_end(path)
            if len(self._found) > _MOST_OPEN:
                self._found.popitem(last=False)
        return found, True
