"""A thread of each rank that hears of the failure of others, so that none waits in a collective for one that will not come."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

from fastmix_data.errors import PeerError
from train.ranks.meeting import FAILED, Meeting, peer_error

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_END_BY_ITSELF = 5.0
# A beat comes from a thread that needs Python's lock for a moment: only a process that is gone, or a node, is silent for so long.
_SECONDS_OF_SILENCE = 60.0
_ERROR_CODE = 2


class Watch(threading.Thread):
    """Beats for this rank, and ends the process where another rank has failed and the main thread does not end it in time.

    Rank 0 also listens to the beats of all: without its word a node that vanished would be noticed after NCCL's 10 or gloo's 30
    minutes.
    """

    def __init__(self, meeting: Meeting) -> None:
        """Nothing runs before `start`."""
        super().__init__(name="fastmix-watch", daemon=True)
        self._meeting, self._ended = meeting, threading.Event()
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._answered = time.monotonic()

    def end(self) -> None:
        """From here on the main thread ends the process by itself."""
        self._ended.set()

    def run(self) -> None:
        """Until the main thread ends it."""
        threading.Thread(target=self._guard, name="fastmix-guard", daemon=True).start()
        number = 0
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            number += 1
            try:
                self._beat(number)
                failed = self._meeting.watched.check([FAILED])
                error = peer_error(json.loads(self._meeting.watched.get(FAILED))) if failed else None
                self._answered = time.monotonic()
            except (dist.DistError, RuntimeError):
                error = lost_store(self._meeting)
            if error is not None and not self._ended.wait(_SECONDS_TO_END_BY_ITSELF):
                _exit(f"error on rank {self._meeting.rank}: {error}")

    def _guard(self) -> None:
        """End the process where the store does not answer: a question to a node that vanished waits for ever."""
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            if time.monotonic() - self._answered > _SECONDS_OF_SILENCE:
                _exit(f"error on rank {self._meeting.rank}: {lost_store(self._meeting)}")

    def _beat(self, number: int) -> None:
        store = self._meeting.watched
        store.set(f"beat/{self._meeting.rank}", str(number))
        if self._meeting.rank > 0 or number % 5:
            return
        silent = self._silent(time.monotonic())
        if silent is not None:
            what = f"it has not been heard of for {_SECONDS_OF_SILENCE:g} s"
            said = {"rank": silent, "host": self._meeting.facts[silent].host, "line": "", "what": what}
            store.compare_set(FAILED, "", json.dumps(said))

    def _silent(self, now: float) -> int | None:
        """A rank whose beats stopped."""
        store, ranks = self._meeting.watched, range(self._meeting.world_size)
        beating = [rank for rank in ranks if store.check([f"beat/{rank}"])]
        for rank, beat in zip(beating, store.multi_get([f"beat/{rank}" for rank in beating]), strict=True):
            if self._beats.get(rank, (b"", 0.0))[0] != beat:
                self._beats[rank] = (beat, now)
        return next((rank for rank, (_, since) in self._beats.items() if now - since > _SECONDS_OF_SILENCE), None)


def lost_store(meeting: Meeting) -> PeerError:
    """What is said where the store is gone, which is kept by rank 0 or by torchrun on its node."""
    where = meeting.facts[0] if meeting.facts else "rank 0"
    return PeerError(where, "it failed or is gone, and this rank stops too", "see its line or log")


def stopped_beats(meeting: Meeting, *, seconds: float, wait: Callable[[float], None] = time.sleep) -> list[int]:
    """Ranks whose processes are gone: those that do not beat within some seconds."""
    names = [f"beat/{rank}" for rank in range(meeting.world_size)]
    before = [meeting.store.get(name) if meeting.store.check([name]) else b"" for name in names]
    wait(seconds)
    after = [meeting.store.get(name) if meeting.store.check([name]) else b"" for name in names]
    return [rank for rank, (one, other) in enumerate(zip(before, after, strict=True)) if one == other and one]


def _exit(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(_ERROR_CODE)
