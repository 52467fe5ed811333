"""Where a `SourceMeter` and a search write. A sink is anything called with figures and a step: `accelerator.log` and Lightning's
`logger.log_metrics` are sinks as they are. The packages are imported when the first figures come.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from fastmix_data.errors import InputError

SinkKind = Literal["tensorboard", "wandb"]


class TensorBoardSink:
    """Scalars in an event file."""

    def __init__(self, directory: str | Path, *, next_step: int | None = None) -> None:
        """Nothing is written, and no folder made, before the first figures.

        Args:
            next_step: of a run that goes on in the folder; TensorBoard forgets what it was told of this step and later ones.
        """
        self._directory, self._next_step = Path(directory), next_step
        self._writer: Any = None

    def __call__(self, figures: dict[str, float], step: int) -> None:
        """Write the figures of a step, so that they can be seen at once.

        Raises:
            InputError: there is no tensorboard.
        """
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise _lacks("tensorboard") from error
            self._writer = SummaryWriter(str(self._directory), purge_step=self._next_step)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """A Weights & Biases run: the one that is active, or a new one, which `close` ends."""

    def __init__(self, *, prefix: str = "source", **settings: Any) -> None:
        """Keep what `wandb.init` is to be called with if no run is active, for example `project="x", mode="offline"`.

        Args:
            prefix: of the names of all figures.
        """
        self._settings, self._prefix = settings, prefix
        self._run: Any = None
        self._is_own = False

    def __call__(self, figures: dict[str, float], step: int) -> None:
        """Log the figures over a step of their own, as `source_step`, which does not meddle with the steps that the training loop logs by.

        Raises:
            InputError: there is no wandb.
        """
        if self._run is None:
            wandb = _import_wandb()
            self._is_own = wandb.run is None
            self._run = wandb.init(**self._settings) if self._is_own else wandb.run
            self._run.define_metric(f"{self._prefix}_step")
            self._run.define_metric(f"{self._prefix}_*", step_metric=f"{self._prefix}_step")
        self._run.log({**figures, f"{self._prefix}_step": step})

    def close(self) -> None:
        """Finish the run, if the sink began it."""
        if self._run is not None and self._is_own:
            self._run.finish()


def require_package(name: SinkKind) -> None:
    """See that a sink's package is there, before any work.

    Raises:
        InputError: it is not; says how to install it.
    """
    if importlib.util.find_spec(name) is None:
        raise _lacks(name)


def _import_wandb() -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise _lacks("wandb") from error
    return wandb


def _lacks(package: str) -> InputError:
    return InputError("logging", f"needs the package {package}, which is not installed", "pip install 'fastmix[logging]'")
