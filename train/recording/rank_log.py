"""A log for each rank, so that one that fails on another node tells its story while the terminal shows a line."""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

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


@contextmanager
def rank_log(path: Path | None, *, rank: int, world_size: int) -> Iterator[None]:
    """Write to `path` what this process logs within the block: its start, our messages, everybody's warnings, and the error it ends with.

    What would have gone to the terminal still does on the first rank. With None nothing is changed.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("a", encoding="utf-8")
    file = logging.StreamHandler(stream)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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
    watches_crashes = not faulthandler.is_enabled()
    if watches_crashes:  # NCCL aborts the process where a peer is gone
        faulthandler.enable(stream)
    try:
        _log_start(rank, world_size)
        yield
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
        if watches_crashes:
            faulthandler.disable()
        logging.captureWarnings(False)
        for logger in apart:
            logger.removeHandler(file)
        for logger, level in zip(own, levels, strict=True):
            logger.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
        stream.close()


def _log_start(rank: int, world_size: int) -> None:
    versions = ", ".join(f"{name} {_version(name)}" for name in _VERSIONS)
    _log.info("rank %d of %d on %s, process %d, %s", rank, world_size, socket.gethostname(), os.getpid(), own_device_name())
    _log.info("%s, python %s", versions, platform.python_version())
    launched_by = " ".join(f"{name}={os.environ[name]}" for name in _LAUNCHED_BY if name in os.environ)
    _log.info("%s", " ".join(sys.argv) + (f"  [{launched_by}]" if launched_by else ""))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
