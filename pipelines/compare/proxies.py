"""Proxies trained on fixed mixtures, kept by what decides them, so that swarms and confirmations are shared by all targets.

A run lies in `compare/runs/HASH/`: `proxy.pt` (the parameters), `run.json` (written after them, so a run with it is complete) and
`losses.json` (its losses by half, sample size and target, as far as they were asked for).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.artefacts import PARTIAL_SUFFIX, fsync_directory, hash_of, read_json, write_json
from fastmix_data.errors import CorruptArtefactError
from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.shards.sequences import Half

_FORMAT_VERSION = 1
# What of the search decides a proxy trained on a fixed mixture; the other keys move mixtures or only report.
TRAINING_KEYS = (
    "sequence_length",
    "global_batch",
    "micro_batch",
    "learning_rate",
    "warmup_fraction",
    "min_lr_fraction",
    "weight_decay",
    "adam_betas",
    "gradient_clipping",
    "locality_window",
)
OnTokens = Callable[[int], None]


def training_identity(recipe: Recipe, catalog: Catalog) -> dict[str, Any]:
    """Everything but mixture and seed that decides a proxy trained for the search's budget."""
    search = recipe.search.model_dump(mode="json")
    return {
        "format": _FORMAT_VERSION,
        "data": catalog.fingerprint,
        "proxy": recipe.proxy.model_dump(mode="json"),
        "precision": recipe.deepspeed.precision,
        "share_seen": recipe.share_seen,
        "num_steps": recipe.search.num_steps,
        **{key: search[key] for key in TRAINING_KEYS},
    }


def on_one_rank(recipe: Recipe) -> Recipe:
    """The recipe without ZeRO, which has nothing to spread on a single rank and does not change what is computed."""
    deepspeed = DeepspeedSection(zero_stage=0, precision=recipe.deepspeed.precision)
    return recipe.model_copy(update={"deepspeed": deepspeed})


@dataclass(frozen=True)
class RunResult:
    """A trained proxy's cost and losses."""

    num_tokens: int
    seconds: float
    losses: dict[str, float]


@dataclass(frozen=True)
class ProxyJob:
    """Train a proxy on a mixture, unless that was done before, and measure its losses.

    Attributes:
        recipe: of the workdir that holds shards and runs.
        weights: shares in the order of the catalog's sources.
        names: targets of the catalog to measure.
        half: of the held-out data.
    """

    recipe: Recipe
    weights: tuple[float, ...]
    seed: int
    names: tuple[str, ...]
    half: Half

    @property
    def num_tokens(self) -> int:
        """Tokens of its training."""
        search = self.recipe.search
        return search.num_steps * search.tokens_per_step

    def directory(self, catalog: Catalog) -> Path:
        """Where the run lies."""
        identity = {**training_identity(self.recipe, catalog), "weights": list(self.weights), "seed": self.seed}
        return catalog.root / "compare" / "runs" / hash_of(identity)[:20]

    def finished(self, catalog: Catalog) -> RunResult | None:
        """The result, if run and losses are on disk."""
        directory = self.directory(catalog)
        record = _read_record(directory)
        if record is None:
            return None
        known = _read_losses(directory).get(self._losses_key, {})
        if any(name not in known for name in self.names):
            return None
        return RunResult(int(record["num_tokens"]), float(record["seconds"]), {name: known[name] for name in self.names})

    def run(self, on_tokens: OnTokens) -> RunResult:
        """Do what is missing, in a process group of one rank.

        Args:
            on_tokens: told the tokens of each step.

        Raises:
            FastmixError: the proxy's loss is not finite.
        """
        from train.proxy.training import load_proxy, target_losses, train_on_mixture

        recipe, catalog = on_one_rank(self.recipe), load_catalog(self.recipe.paths.catalog)
        done = self.finished(catalog)
        if done is not None:
            on_tokens(self.num_tokens)
            return done
        directory = self.directory(catalog)
        if _read_record(directory) is None:
            per_step = self.num_tokens // recipe.search.num_steps
            plain = train_on_mixture(
                recipe, catalog, np.array(self.weights), seed=self.seed, on_step=lambda *_: on_tokens(per_step)
            )
            directory.mkdir(parents=True, exist_ok=True)
            partial = directory / f"proxy.pt{PARTIAL_SUFFIX}"
            plain.save(partial)
            partial.replace(directory / "proxy.pt")
            fsync_directory(directory)
            weights = dict(zip(catalog.sources, self.weights, strict=True))
            record = {"weights": weights, "seed": self.seed, "num_tokens": plain.num_tokens, "seconds": round(plain.seconds, 3)}
            write_json(directory / "run.json", record)
            engine = plain.engine
        else:
            engine = load_proxy(directory / "proxy.pt", recipe, catalog)
            on_tokens(self.num_tokens)
        losses = _read_losses(directory)
        known = losses.setdefault(self._losses_key, {})
        for name in self.names:  # one at a time: the sample of a target must not depend on the others
            if name not in known:
                known |= target_losses(engine, recipe, catalog, names=[name], half=self.half)
        write_json(directory / "losses.json", losses)
        found = self.finished(catalog)
        assert found is not None
        return found

    @property
    def _losses_key(self) -> str:
        return f"{self.half}, {self.recipe.search.eval_sequences} sequences"


def unfinished(jobs: Sequence[ProxyJob], catalog: Catalog) -> list[ProxyJob]:
    """Those that have something left to do, each run once."""
    left = {job.directory(catalog): job for job in jobs if job.finished(catalog) is None}
    return list(left.values())


def _read_record(directory: Path) -> dict[str, Any] | None:
    path = directory / "run.json"
    if not path.exists():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or not {"num_tokens", "seconds"} <= record.keys() or not (directory / "proxy.pt").exists():
        raise CorruptArtefactError(f"{directory}: not a complete run; delete it and run `fastmix compare` again")
    return record


def _read_losses(directory: Path) -> dict[str, dict[str, float]]:
    path = directory / "losses.json"
    return dict(read_json(path)) if path.exists() else {}
