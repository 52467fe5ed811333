"""What a report is made from: whatever a workdir holds so far, in one order of sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from fastmix_data.arrays import Float64s
from fastmix_data.artefacts import read_json
from fastmix_data.errors import CorruptArtefactError, InputError
from fastmix_data.manifest.manifest import Manifest, ManifestSource, load_manifest
from fastmix_data.results.mixture import Mixture, load_mixture
from fastmix_data.shards.catalog import Catalog, load_catalog
from pipelines.report.certainty import Certainty, certainty_of
from pipelines.report.groups import SourceGroup, group_sources
from pipelines.report.method_figures import Comparison, MethodFigures, method_figures, read_comparison

_SAME_WEIGHT = 1e-6
_T = TypeVar("_T")


@dataclass(frozen=True)
class TrajectoryTable:
    """The trajectory of a search as arrays: U updates of K sources and G targets, in the order of `sources` and `targets`.

    `target_losses_UG` is not a number where a target was in no batch yet; G is 0 where targets were not recorded.
    """

    sources: tuple[str, ...]
    tokens_U: Float64s
    weights_UK: Float64s
    scores_UK: Float64s
    train_loss_U: Float64s
    target_loss_U: Float64s
    targets: tuple[str, ...]
    target_weights_UG: Float64s
    target_losses_UG: Float64s


@dataclass(frozen=True)
class ReportInputs:
    """The artefacts of a workdir; None for each that is not there yet."""

    workdir: Path
    catalog: Catalog | None
    mixture: Mixture | None
    trajectory: TrajectoryTable | None
    manifest: Manifest | None
    recipe: dict[str, Any]
    comparison: Comparison | None = None

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names by falling weight; without a mixture by falling size."""
        if self.mixture is not None:
            weights = self.mixture.weights
            return tuple(sorted(weights, key=lambda name: (-weights[name], name)))
        catalog = self.catalog
        if catalog is None:
            return tuple(source.name for source in self.manifest.sources) if self.manifest is not None else ()
        return tuple(sorted(catalog.sources, key=lambda name: (-catalog.num_tokens(name), name)))

    @cached_property
    def constrained_groups(self) -> dict[str, dict[str, Any]]:
        """Groups of the recipe beside the search, by name."""
        groups: dict[str, dict[str, Any]] = self.recipe.get("search", {}).get("constraints", {}).get("groups", {})
        return groups

    @cached_property
    def groups(self) -> tuple[SourceGroup, ...]:
        """Sources that are shown together; empty where they are not grouped."""
        return group_sources(self.sources, self.constrained_groups)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Unique training tokens by source; empty without a catalog."""
        if self.catalog is None:
            return {}
        return dict(zip(self.catalog.sources, self.catalog.num_tokens_K().tolist(), strict=True))

    @cached_property
    def size_shares(self) -> dict[str, float]:
        """Weights proportional to size; empty without a catalog."""
        total = sum(self.sizes.values())
        return {name: size / total for name, size in self.sizes.items()} if total else {}

    @cached_property
    def emitted(self) -> dict[str, ManifestSource]:
        """The manifest's sources by name; empty without a manifest."""
        return {source.name: source for source in self.manifest.sources} if self.manifest is not None else {}

    @cached_property
    def compared(self) -> list[MethodFigures]:
        """Results of the compared methods, the best first; empty without a comparison."""
        return method_figures(self.comparison) if self.comparison is not None else []

    @cached_property
    def certainty(self) -> Certainty:
        """How far to trust the weights; empty without a mixture."""
        return certainty_of(self.mixture) if self.mixture is not None else Certainty({}, (), {}, {}, "")

    @cached_property
    def binding(self) -> dict[str, str]:
        """Constraints that the answer lies at, by source or group."""
        return self.mixture.binding if self.mixture is not None else {}

    @cached_property
    def start_weights(self) -> dict[str, float]:
        """The mixture before the first update; empty without a search."""
        return self.mixture.initial_weights if self.mixture is not None else {}

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """What is not there yet, each with the command that makes it."""
        wanted = (
            (self.catalog, "no catalog: `fastmix preprocess` makes it"),
            (self.mixture, "no mixture: `fastmix search` learns it"),
            (self.trajectory, "no trajectory: `fastmix search` records it"),
            (self.manifest, "no manifest: `fastmix emit` writes it"),
        )
        return tuple(text for artefact, text in wanted if artefact is None)

    @cached_property
    def disagreements(self) -> tuple[str, ...]:
        """Artefacts that were made from others than the ones beside them."""
        found = []
        now = self.catalog.fingerprint if self.catalog is not None else ""
        searched = self.mixture.catalog_hash if self.mixture is not None else ""
        emitted = self.manifest.catalog_hash if self.manifest is not None else ""
        if now and searched and now != searched:
            found.append("The mixture was learned on other data than this catalog holds; run `fastmix search` again.")
        if now and emitted and now != emitted:
            found.append("The manifest was written from another catalog; run `fastmix emit` again.")
        if self.mixture is not None and self.emitted.keys() == self.mixture.weights.keys():
            weights = self.mixture.weights
            if any(abs(source.weight - weights[name]) > _SAME_WEIGHT for name, source in self.emitted.items()):
                found.append("The manifest was written from another mixture than the one shown here; run `fastmix emit` again.")
        found += self._disagreements_of_comparison()
        return tuple(found)

    def _disagreements_of_comparison(self) -> list[str]:
        compared, mixture = self.comparison, self.mixture
        if compared is None:
            return []
        now = self.catalog.fingerprint if self.catalog is not None else ""
        searched = mixture.recipe_hash if mixture is not None else ""
        other_data = now and compared.catalog_hash and now != compared.catalog_hash
        other_recipe = searched and compared.recipe_hash and searched != compared.recipe_hash
        what = "on other data" if other_data else "with another recipe" if other_recipe else ""
        return (
            [f"The methods were compared {what} than the mixture shown here comes from; run `fastmix compare` again."]
            if what
            else []
        )


def read_inputs(workdir: Path) -> ReportInputs:
    """Read what is there.

    Raises:
        InputError: nothing is.
        FastmixError: an artefact is damaged.
    """
    search = workdir / "search"
    inputs = ReportInputs(
        workdir=workdir,
        catalog=_if_there(workdir / "catalog.parquet", load_catalog),
        mixture=_if_there(search / "mixture.json", load_mixture),
        trajectory=_if_there(search / "trajectory.parquet", read_trajectory),
        manifest=_if_there(workdir / "manifest" / "manifest.json", load_manifest),
        recipe=_if_there(search / "recipe.json", read_json) or {},
        comparison=_if_there(workdir / "compare" / "compare.json", read_comparison),
    )
    if inputs.catalog is None and inputs.mixture is None and inputs.manifest is None:
        raise InputError(f"{workdir}: nothing to report on yet; run `fastmix run` or `fastmix preprocess` first")
    for name, found in (
        ("trajectory.parquet", inputs.trajectory.sources if inputs.trajectory else ()),
        ("manifest.json", tuple(inputs.emitted)),
    ):
        if found and set(found) != set(inputs.sources):
            raise CorruptArtefactError(
                f"{workdir}: {name} and the mixture are of different sources; run `fastmix search` and `fastmix emit` again with --replace"
            )
    return inputs


def _if_there(path: Path, read: Callable[[Path], _T]) -> _T | None:
    return read(path) if path.is_file() else None


def read_trajectory(path: Path) -> TrajectoryTable | None:
    """Read a trajectory; None if it has no row yet.

    Raises:
        CorruptArtefactError: it is not one.
    """
    try:
        table = pq.read_table(path)
        names = orjson.loads(table.schema.metadata[b"fastmix"])
        sources, targets = tuple(names["sources"]), tuple(names.get("targets", ()))
        columns = {name: table[name].to_numpy().astype(np.float64) for name in ("tokens", "train_loss", "target_loss")}
        lists = {name: _matrix(table, name, len(sources)) for name in ("weights", "scores")}
        lists |= {name: _matrix(table, name, len(targets)) for name in ("target_weights", "target_losses") if targets}
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise CorruptArtefactError(f"{path}: not a trajectory of fastmix; run `fastmix search --replace`") from error
    if not table.num_rows:
        return None
    none_UG = np.zeros((table.num_rows, 0))
    return TrajectoryTable(
        sources=sources,
        tokens_U=columns["tokens"],
        weights_UK=lists["weights"],
        scores_UK=lists["scores"],
        train_loss_U=columns["train_loss"],
        target_loss_U=columns["target_loss"],
        targets=targets,
        target_weights_UG=lists.get("target_weights", none_UG),
        target_losses_UG=lists.get("target_losses", none_UG),
    )


def _matrix(table: pa.Table, name: str, width: int) -> Float64s:
    """A column of lists as an array of `width` columns."""
    return np.array(table[name].to_pylist(), np.float64).reshape(table.num_rows, width)
