from __future__ import annotations

import multiprocessing as mp
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastmix_data.loading.read_ahead import read_ahead


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fastmix-read-ahead"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 3, 1000])
def test_items_come_in_order_and_the_thread_ends_with_them(depth: int) -> None:
    assert list(read_ahead(range(200), depth=depth)) == list(range(200))
    assert not reading_threads()


def test_no_more_than_depth_items_are_made_ahead() -> None:
    made: list[int] = []
    items = read_ahead((made.append(number) or number for number in range(100)), depth=4)
    assert next(items) == 0
    wait_until(lambda: len(made) == 6)  # the one given out, four in the queue, and the next, which waits for room
    time.sleep(0.05)
    assert len(made) == 6


def test_an_error_comes_where_its_item_would_have_and_ends_the_thread() -> None:
    def failing() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the fourth")

    items = read_ahead(failing(), depth=2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(items)
    assert not reading_threads()


@pytest.mark.parametrize("end", ["close", "forget"])
def test_a_loop_that_stops_early_stops_the_thread(end: str) -> None:
    items = read_ahead(iter(int, 1), depth=2)
    next(items)
    assert len(reading_threads()) == 1
    if end == "close":
        items.close()  # type: ignore[attr-defined]
    del items
    assert not reading_threads()


def _in_fork(items: Iterator[int], answers: Any) -> None:
    try:
        next(items)
    except RuntimeError as error:
        answers.put(str(error))


def test_a_forked_process_is_told_that_the_thread_stayed_behind() -> None:
    context = mp.get_context("fork")
    answers = context.SimpleQueue()
    items = read_ahead(iter(int, 1), depth=2)
    next(items)
    process = context.Process(target=_in_fork, args=(items, answers))
    process.start()
    process.join(30)
    assert process.exitcode == 0 and "iterate the dataset anew" in answers.get()
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
