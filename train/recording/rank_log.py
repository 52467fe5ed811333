"""A log for each rank, so that one that fails on another node tells its story while the terminal shows a line."""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO

from fastmix_data.errors import FastmixError, Interrupted
from train.recording.model_flops import own_device_name

_OWN = ("fastmix_data", "train", "pipelines")
_APART = ("DeepSpeed", "transformers")  # these libraries' loggers hand nothing on to the root
_VERSIONS = ("fastmix", "torch", "deepspeed", "transformers", "numpy")
_LAUNCHED_BY = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "LOCAL_RANK",
    "SLURM_JOB_ID",
    "SLURM_PROCID",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_SOCKET_IFNAME",
)
_log = logging.getLogger(__name__)


class _RankFile(logging.Handler):
    """Appends to a file that is opened, and begun with who writes, for the first message: a command with nothing to do leaves nothing."""

    def __init__(self, path: Path, *, rank: int, world_size: int) -> None:
        super().__init__()
        self._path, self._rank, self._world_size = path, rank, world_size
        self.stream: IO[str] | None = None
        self._watches_crashes = False
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            stream = self.stream or self._opened()
            stream.write(f"{self.format(record)}\n")
            stream.flush()
        except OSError:
            pass  # a full disk stops the search's own files, and those say so

    def _opened(self) -> IO[str]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = self._path.open("a", encoding="utf-8")
        self.stream.writelines(f"{line}\n" for line in _who_writes(self._rank, self._world_size))
        self._watches_crashes = not faulthandler.is_enabled()
        if self._watches_crashes:  # NCCL aborts the process where a peer is gone
            faulthandler.enable(self.stream)
        return self.stream

    def close(self) -> None:
        if self._watches_crashes:
            faulthandler.disable()
        if self.stream is not None:
            with suppress(OSError):
                self.stream.close()
        super().close()


@contextmanager
def rank_log(path: Path | None, *, rank: int, world_size: int) -> Iterator[None]:
    """Write to `path` what this process logs within the block: our messages, everybody's warnings, and the error it ends with.

    What would have gone to the terminal still does on the first rank. With None nothing is changed.
    """
    if path is None:
        yield
        return
    file = _RankFile(path, rank=rank, world_size=world_size)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING)
    # The error is the command's to show, on one line.
    terminal.addFilter(lambda record: record.exc_info is None)
    handlers: list[logging.Handler] = [file, terminal] if rank == 0 else [file]
    root, own = logging.getLogger(), [logging.getLogger(name) for name in _OWN]
    apart = [logging.getLogger(name) for name in _APART]
    levels = [logger.level for logger in own]
    for handler in handlers:
        root.addHandler(handler)
    for logger in own:
        logger.setLevel(logging.INFO)
    for logger in apart:
        logger.addHandler(file)
    logging.captureWarnings(True)
    try:
        yield
        if file.stream is not None:
            _log.info("done")
    except Interrupted as error:
        _log.info("stopped: %s", error)
        raise
    except FastmixError as error:
        _log.error("%s", error, exc_info=error)
        raise
    except BaseException as error:
        _log.exception("ended by %s", type(error).__name__)
        raise
    finally:
        logging.captureWarnings(False)
        for logger in apart:
            logger.removeHandler(file)
        for logger, level in zip(own, levels, strict=True):
            logger.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
        file.close()


def _who_writes(rank: int, world_size: int) -> list[str]:
    """Rank, machine, versions and command."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    launched_by = " ".join(f"{name}={os.environ[name]}" for name in _LAUNCHED_BY if name in os.environ)
    return [
        f"{now} rank {rank} of {world_size} on {socket.gethostname()}, process {os.getpid()}, {own_device_name()}",
        f"{now} python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in _VERSIONS),
        f"{now} " + " ".join(sys.argv) + (f"  [{launched_by}]" if launched_by else ""),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
