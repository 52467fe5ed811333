"""Reading ahead in a thread, for loops without workers."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], *, depth: int) -> Generator[T]:
    """Yield the items in their order, while a thread makes up to `depth` of those to come.

    The thread starts with the first `next` and ends with the last item, with an error, or when this iterator is closed or thrown away.

    Raises:
        Whatever `items` raises, where its item would have come.
        RuntimeError: a process forked off asks for the next item, for the thread stayed behind.
    """
    owner = os.getpid()
    queue = _Queue[T](depth)
    thread = threading.Thread(target=queue.fill, args=(items,), name="fastmix-read-ahead", daemon=True)
    thread.start()
    try:
        while (item := queue.take()) is not None:
            yield item
            if os.getpid() != owner:
                raise RuntimeError("the thread that reads ahead stayed in the process that was forked; iterate the dataset anew")
    finally:
        # In a fork the lock may have been copied while it was held, and nobody is left to release it.
        if os.getpid() == owner:
            queue.close()
            thread.join()


class _Queue(Generic[T]):
    """A bounded queue with an end: closed by its reader, or filled to the end or to an error by its writer.

    That of the standard library has no end: a writer that waits for room could not be told to stop but by polling.
    """

    def __init__(self, depth: int) -> None:
        assert depth > 0
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = self._filled = False
        self._error: BaseException | None = None

    def fill(self, items: Iterable[T]) -> None:
        """Put all items in; returns early once the queue is closed. An error is kept for the reader."""
        try:
            for item in items:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
                    if self._closed:
                        return
                    self._items.append(item)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._filled = True
                self._changed.notify_all()

    def take(self) -> T | None:
        """The next item, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._filled)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        """Let the writer stop."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
