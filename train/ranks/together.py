"""The frame around a launched run: ranks meet, one that fails tells the others, and all leave together."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from fastmix_data.errors import FastmixError, PeerError, ToldElsewhere
from fastmix_data.machine import LaunchedRank
from fastmix_data.messages import first_line
from train.ranks.meeting import FAILED, Meeting, meet, open_meeting, peer_error
from train.ranks.watch import Watch, lost_store, stopped_beats

_SECONDS_FOR_THE_FIRST = 4.0  # for rank 0 to fail in the same way and tell it for all
_SECONDS_OF_BEATS = 4.0
_SECONDS_TO_LEAVE = 60.0
# What collectives say of a peer that is gone where torch has no class of its own for it.
_SIGNS_OF_A_LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe", "socket")


@contextmanager
def together(launched: LaunchedRank) -> Iterator[Meeting]:
    """All ranks of a run, from the first meeting to the end.

    Within it each rank goes its way. The first that fails tells it to all, and the others end within seconds wherever they are.

    Raises:
        FastmixError: as this rank failed.
        PeerError: another rank failed or is gone, and this one therefore.
        ToldElsewhere: all ranks failed alike, and another one tells it.
    """
    meeting, watch = open_meeting(launched), None
    try:
        meeting = meet(meeting, launched)
        watch = Watch(meeting)
        watch.start()
        yield meeting
        _leave(meeting)
    except PeerError:
        raise
    except RuntimeError as error:
        if not _is_of_a_peer(error):
            _tell(meeting, error)
            raise
        raise _peer_of(meeting, error) from error
    except BaseException as error:
        _tell(meeting, error)
        raise
    finally:
        if watch is not None:
            watch.end()


def _leave(meeting: Meeting) -> None:
    """Rank 0, whose store the others still look at, goes last."""
    meeting.store.set(f"left/{meeting.rank}", "")
    if meeting.rank == 0:
        names, deadline = [f"left/{rank}" for rank in range(meeting.world_size)], time.monotonic() + _SECONDS_TO_LEAVE
        while not meeting.store.check(names) and time.monotonic() < deadline:
            meeting.check_failed()
            time.sleep(0.05)


def _tell(meeting: Meeting, error: BaseException) -> None:
    """Leave word of this rank's failure.

    Raises:
        PeerError: another failed before, in another way, and this error is no user's.
        ToldElsewhere: rank 0 fails in the same way, and tells it.
    """
    line, rank = " ".join(str(error).split()), meeting.rank
    mine = {"rank": rank, "host": socket.gethostname(), "line": line}
    try:
        meeting.store.set(f"line/{rank}", line)
        first = json.loads(meeting.store.compare_set(FAILED, "", json.dumps(mine)))
        is_told = rank > 0 and _says_the_same(meeting, line)
    except (dist.DistError, RuntimeError):
        return  # the store is gone with rank 0; what happened here is told as it is
    if is_told:
        raise ToldElsewhere(line, "") from error
    if first["rank"] != rank and not isinstance(error, FastmixError | OSError | KeyboardInterrupt):
        raise peer_error(first) from error


def _says_the_same(meeting: Meeting, line: str) -> bool:
    """Whether rank 0 has failed, or fails soon, with the same line."""
    deadline = time.monotonic() + _SECONDS_FOR_THE_FIRST
    while not meeting.store.check(["line/0"]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return bool(meeting.store.get("line/0").decode() == line)


def _is_of_a_peer(error: RuntimeError) -> bool:
    """Whether a connection failed; all that torch says of its store is of that kind."""
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in _SIGNS_OF_A_LOST_PEER)


def _peer_of(meeting: Meeting, error: BaseException) -> FastmixError:
    """Whose end a failed collective is due to: a rank that said so, or one that went without a word."""
    try:
        gone = [] if not meeting.facts or meeting.store.check([FAILED]) else stopped_beats(meeting, seconds=_SECONDS_OF_BEATS)
        if meeting.store.check([FAILED]):
            return peer_error(json.loads(meeting.store.get(FAILED)))
    except (dist.DistError, RuntimeError):
        return PeerError(str(lost_store(meeting).where), "it is gone", _REMEDY)
    where = str(meeting.facts[gone[0]]) if gone else "a rank"
    what = "it is gone without a word" if gone else f"no connection to it ({first_line(error)})"
    return PeerError(where, what, _REMEDY)


_REMEDY = (
    "it may have been killed, for example for lack of memory: see its node's log; the same command goes on from what is saved"
)
