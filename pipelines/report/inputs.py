"""What a report is made from: whatever a workdir holds so far, in one order of sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from fastmix_data.errors import CorruptArtefactError, InputError
from fastmix_data.manifest.estimated import EmitPlan, PlannedSource, load_plan
from fastmix_data.manifest.manifest import Manifest, ManifestSource, load_manifest
from fastmix_data.recipe.constraints import GroupSection
from fastmix_data.results.comparison import Comparison, load_comparison
from fastmix_data.results.mixture import Certainty, Mixture, Origin, TargetRecord, TrialsRecord, load_mixture
from fastmix_data.results.search_progress import SearchProgress, read_progress
from fastmix_data.results.searched_recipe import SearchedRecipe, load_searched_recipe
from fastmix_data.results.trajectory import TrajectoryTable, read_trajectory
from fastmix_data.shards.catalog import Catalog, load_catalog
from fastmix_data.weight_units import WeightUnit
from fastmix_data.workdir import Workdir
from pipelines.report.groups import SourceGroup, group_sources
from pipelines.report.method_figures import MethodFigures, method_figures

# Weights that were copied by hand into `--mixture FILE` are the same mixture, though their last digits and their hash are not.
_SAME_WEIGHT = 1e-6
_Artefact = TypeVar("_Artefact")


@dataclass(frozen=True)
class ReportInputs:
    """The artefacts of a workdir; None for each that is not there yet.

    Attributes:
        unreadable: remarks about artefacts that are there but left out.
        plan: what the manifest will be about, where a sample is there.
        progress: of a search that has not come to its mixture yet, whose trajectory so far is the trajectory then.
    """

    paths: Workdir
    catalog: Catalog | None
    mixture: Mixture | None
    trajectory: TrajectoryTable | None
    manifest: Manifest | None
    recipe: SearchedRecipe | None
    comparison: Comparison | None
    unreadable: tuple[str, ...] = ()
    plan: EmitPlan | None = None
    progress: SearchProgress | None = None

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names by falling weight; without a mixture by falling size."""
        if self.mixture is not None:
            weights = self.mixture.weights
            return tuple(sorted(weights, key=lambda name: (-weights[name], name)))
        if self.progress is not None and self.progress.updates:
            weights = dict(zip(self.progress.sources, self.progress.weights_K.tolist(), strict=True))
            return tuple(sorted(weights, key=lambda name: (-weights[name], name)))
        catalog = self.catalog
        if catalog is None:
            return tuple(self.emitted)
        return tuple(sorted(catalog.sources, key=lambda name: (-catalog.num_tokens(name), name)))

    @cached_property
    def constrained_groups(self) -> Mapping[str, GroupSection]:
        """Groups of the recipe beside the search, by name."""
        return self.recipe.search.constraints.groups if self.recipe is not None else {}

    @cached_property
    def groups(self) -> tuple[SourceGroup, ...]:
        """Sources that are shown together; empty where they are not grouped."""
        return group_sources(self.sources, self.constrained_groups)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Unique training tokens by source, estimated where a sample is there; empty without a catalog."""
        if self.catalog is None:
            return {}
        return dict(zip(self.catalog.sources, self.catalog.available_K().tolist(), strict=True))

    @cached_property
    def unit_counts(self) -> dict[WeightUnit, dict[str, int]]:
        """Loss tokens and examples by source, estimated as `sizes` are, where some tokens carry no loss; else empty."""
        catalog = self.catalog
        if catalog is None or not any(row.has_mask for row in catalog.rows):
            return {}
        units: tuple[WeightUnit, ...] = ("loss_tokens", "examples")
        whole_K = catalog.available_K() / np.maximum(1, catalog.num_tokens_K())
        counts = {unit: np.rint(catalog.num_units_K(unit) * whole_K).astype(np.int64).tolist() for unit in units}
        return {unit: dict(zip(catalog.sources, counts_K, strict=True)) for unit, counts_K in counts.items()}

    @cached_property
    def size_shares(self) -> dict[str, float]:
        """Weights proportional to size; empty without a catalog."""
        total = sum(self.sizes.values())
        return {name: size / total for name, size in self.sizes.items()} if total else {}

    @cached_property
    def emitted(self) -> dict[str, ManifestSource | PlannedSource]:
        """The manifest's sources by name, or those of its plan; empty without either."""
        emitted = self.manifest or self.plan
        return {source.name: source for source in emitted.sources} if emitted is not None else {}

    @property
    def estimated(self) -> tuple[str, ...]:
        """Sources of which only a sample is there, so that their sizes and what follows from them are estimates."""
        sample = None if self.catalog is None else self.catalog.info.sample
        return () if sample is None else tuple(sample.sources)

    @cached_property
    def compared(self) -> list[MethodFigures]:
        """Results of the compared methods, the best first; empty without a comparison."""
        return method_figures(self.comparison) if self.comparison is not None else []

    @property
    def certainty(self) -> Certainty:
        """How far to trust the weights; empty without a mixture."""
        return self.mixture.certainty if self.mixture is not None else Certainty()

    @property
    def trials(self) -> TrialsRecord | None:
        """What trials said of the mixtures proposed; None where there were none."""
        return self.mixture.trials if self.mixture is not None else None

    @property
    def production_tokens(self) -> int | None:
        """Length of the run that the mixture is for: the manifest's budget, else emit's as far as the search went by it."""
        if self.manifest is not None:
            return self.manifest.token_budget
        return self.recipe.emit.token_budget if self.recipe is not None and self.recipe.emit is not None else None

    @property
    def target(self) -> TargetRecord:
        """What the proxy came to on the target; empty without a mixture."""
        return self.mixture.target if self.mixture is not None else TargetRecord()

    @property
    def binding(self) -> dict[str, str]:
        """Constraints that the answer lies at, by source or group."""
        return self.mixture.binding if self.mixture is not None else {}

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not there yet, each with the command that makes it."""
        wanted = (
            (self.catalog, "no catalog: `fastmix preprocess` makes it"),
            (self.mixture or self.progress, "no mixture: `fastmix search` learns it"),
            (self.trajectory or self.progress, "no trajectory: `fastmix search` records it"),
            (
                self.manifest,
                "no manifest: `fastmix emit` writes it" + (" after `fastmix preprocess --all`" if self.estimated else ""),
            ),
        )
        return tuple(text for artefact, text in wanted if artefact is None)

    @property
    def disagreements(self) -> tuple[str, ...]:
        """Artefacts that were made from others than the ones beside them."""
        catalog_hash = self.catalog.fingerprint if self.catalog is not None else ""
        searched = self.mixture.made_from if self.mixture is not None else Origin()
        found = []
        if self.catalog is not None and searched.catalog and not self.catalog.is_or_completes(searched.catalog):
            found.append("The mixture was learned on other data than this catalog holds; run `fastmix search` again.")
        if self.manifest is not None and _differ(catalog_hash, self.manifest.catalog_hash):
            found.append("The manifest was written from another catalog; run `fastmix emit` again.")
        if self._is_manifest_of_another_mixture:
            found.append("The manifest was written from another mixture than the one shown here; run `fastmix emit` again.")
        compared = self.comparison
        if compared is not None:
            other_data = _differ(searched.catalog or catalog_hash, compared.catalog_hash)
            other_recipe = _differ(searched.recipe, compared.recipe_hash)
            if other_data or other_recipe:
                what = "on other data" if other_data else "with another recipe"
                found.append(
                    f"The methods were compared {what} than the mixture shown here comes from; run `fastmix compare` again."
                )
        return tuple(found)

    @property
    def _is_manifest_of_another_mixture(self) -> bool:
        if self.mixture is None or self.manifest is None or self.emitted.keys() != self.mixture.weights.keys():
            return False
        if len(self.manifest.phases) > 1:  # they have mixtures of their own
            return False
        weights = self.mixture.weights
        return any(abs(source.weight - weights[name]) > _SAME_WEIGHT for name, source in self.emitted.items())


def _differ(one: str, other: str) -> bool:
    """Whether two hashes differ; an empty one is not known, which is no disagreement."""
    return bool(one and other) and one != other


def read_inputs(paths: Workdir) -> ReportInputs:
    """Read what is there.

    Raises:
        InputError: nothing is.
        FastmixError: an artefact is damaged.
    """
    search = paths.search
    mixture = _if_there(search.mixture, load_mixture)
    progress = read_progress(search.running()) if mixture is None else None
    recipe, unreadable = _read_recipe(search.recipe)
    inputs = ReportInputs(
        paths=paths,
        catalog=_if_there(paths.catalog, load_catalog),
        mixture=mixture,
        # An earlier search's lies there until this one has an answer.
        trajectory=progress.trajectory() if progress is not None else _if_there(search.trajectory, read_trajectory),
        manifest=_if_there(paths.manifest.manifest, load_manifest),
        plan=_if_there(paths.manifest.plan, load_plan),
        recipe=recipe,
        comparison=_if_there(paths.compare.comparison, load_comparison),
        unreadable=unreadable,
        progress=progress,
    )
    if inputs.catalog is None and inputs.mixture is None and inputs.manifest is None:
        raise InputError(paths.root, "nothing to report on yet", "run `fastmix run` or `fastmix preprocess` first")
    of_trajectory = inputs.trajectory.sources if inputs.trajectory is not None else ()
    for path, names in ((search.trajectory, of_trajectory), (paths.manifest.manifest, inputs.emitted)):
        if names and set(names) != set(inputs.sources):
            problem = f"{path.name} and the mixture are of different sources"
            raise CorruptArtefactError(paths.root, problem, "run `fastmix search` and `fastmix emit` again with --replace")
    return inputs


def _if_there(path: Path, read: Callable[[Path], _Artefact | None]) -> _Artefact | None:
    return read(path) if path.is_file() else None


def _read_recipe(path: Path) -> tuple[SearchedRecipe | None, tuple[str, ...]]:
    """The recipe of the search, or a remark that it is left out."""
    try:
        return _if_there(path, load_searched_recipe), ()
    except CorruptArtefactError:
        # The answer is in the mixture; the recipe only explains it, so a page without it is better than none.
        remark = (
            f"The settings of the search and its groups with their bounds are left out: {path.name} is not the recipe of a search of this "
            "version; run `fastmix search --replace`."
        )
        return None, (remark,)
