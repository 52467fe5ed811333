"""The figures of a search's metrics for TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastmix_data.loading.sinks import SinkKind, TensorBoardSink, WandbSink
from fastmix_data.workdir import SearchFolder

_SCALARS = ("train_loss", "target_loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu", "peak_memory_bytes")
_BY_NAME = {"weights": "weight", "scores": "score", "target_weights": "target_weight", "target_losses": "target_loss"}


class SearchSinks:
    """Sinks that get each line of the metrics, over the optimiser steps of all stages.

    Attributes:
        run: a name that a search keeps when it goes on, so that it goes on in the same run of Weights & Biases.
    """

    def __init__(self, kinds: Sequence[SinkKind], *, folder: SearchFolder, per_step: int) -> None:
        """Prepare; nothing is opened before the first figures."""
        self._kinds, self._folder, self._per_step = kinds, folder, per_step
        self._sinks: list[TensorBoardSink | WandbSink] = []
        self._next_step = 0
        self.run = ""

    def go_on_after(self, tokens: int) -> None:
        """What earlier calls of the search told of later steps is void."""
        self._next_step = tokens // self._per_step + 1

    def __call__(self, line: Mapping[str, Any]) -> bool:
        """Tell the figures of a line, if it has any; returns whether the sinks were opened for it, which takes wandb seconds."""
        figures = dict(_figures(line)) if self._kinds else {}
        if not figures:
            return False
        is_first = not self._sinks
        if is_first:
            self._sinks = [self._made(kind) for kind in self._kinds]
        for sink in self._sinks:
            sink(figures, line["tokens"] // self._per_step)
        return is_first

    def close(self) -> None:
        """End what was begun."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def _made(self, kind: SinkKind) -> TensorBoardSink | WandbSink:
        if kind == "tensorboard":
            return TensorBoardSink(self._folder.tensorboard, next_step=self._next_step)
        settings: dict[str, Any] = {"project": "fastmix", "id": self.run, "name": f"search-{self.run}"}
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "online":  # an offline run goes on by its id, when it is synced
            settings["resume"] = "allow"
        return WandbSink(prefix="search", mode=mode, dir=str(self._folder.root), **settings)


def _figures(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    event = line["event"]
    prefix = "search_reference" if event == "reference" else "search"
    for key in _SCALARS:
        if line.get(key) is not None:
            yield f"search_{key}", line[key]
    for key, name in _BY_NAME.items():
        if event != "end":
            yield from ((f"{prefix}_{name}/{of}", value) for of, value in (line.get(key) or {}).items() if value is not None)
    if event == "trial":
        yield f"search_trial_loss/{line['candidate']}", line["loss"]
        for candidate, probability in (line["probability"] or {}).items():
            yield f"search_trial_probability/{candidate}", probability
