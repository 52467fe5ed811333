"""A search in processes that are forked, so that packages are imported once for all of them; each rank is a process like any other."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.proxy import launch
from train.search.plan import SearchPlan
from train.search.search import search

LONGEST = 1800.0  # seconds that a run may take


@dataclass
class Started:
    """A search that is running.

    Attributes:
        process: that starts the ranks and speaks for them, or is the only one.
        num_ranks: that it starts; 1 where it is the only one.
    """

    process: int
    log: Path
    num_ranks: int = 1
    _code: int | None = None

    @property
    def ranks(self) -> list[int]:
        """Processes of its ranks, as far as they are there; none when they have ended and it is about to."""
        if self.num_ranks == 1:
            return [self.process]
        try:
            children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text().split()
        except OSError:
            return []
        # Multiprocessing has helpers of its own, which are no ranks.
        return [int(child) for child in children if not _is_helper(int(child))]

    def has_ended(self) -> int | None:
        """Its exit code, once it has ended."""
        if self._code is None:
            found, status = os.waitpid(self.process, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if found else None
        return self._code

    def lines(self) -> list[str]:
        """What it printed."""
        return self.log.read_text(errors="replace").splitlines()


def start(plan: SearchPlan, *, num_ranks: int, log: Path) -> Started:
    """Search on so many ranks, as `fastmix search` would."""
    return start_process(lambda: search(plan, num_ranks=num_ranks, quiet=True), log=log, num_ranks=num_ranks)


def start_process(work: Callable[[], object], *, log: Path, num_ranks: int = 1) -> Started:
    """Do something in a process whose errors are told as a command tells them."""
    process = os.fork()
    if process == 0:
        _do(work, log)
    return Started(process, log, num_ranks)


def wait(started: Started, *, seconds: float = LONGEST) -> int:
    """The exit code.

    Raises:
        TimeoutError: it does not end.
    """
    deadline = time.monotonic() + seconds
    while (code := started.has_ended()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the search does not end; its log is {started.log}")
        time.sleep(0.01)
    return code


def _do(work: Callable[[], object], log: Path) -> None:
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        logging.getLogger().addHandler(logging.NullHandler())  # a command has a file for it
        launch.start_processes = _forked(launch.start_processes)
        work()
        code = 0
    except launch.FastmixError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        gc.collect()  # semaphores would be missed, and said to be
        sys.stderr.flush()
        os._exit(code)


def _forked(start_processes: Callable[..., Any]) -> Callable[..., Any]:
    def fork(*arguments: Any, start_method: str, **options: Any) -> Any:
        del start_method
        return start_processes(*arguments, start_method="fork", **options)

    return fork


def _is_helper(process: int) -> bool:
    try:
        return b"resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return True
