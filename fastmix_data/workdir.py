"""Every path of a workdir, said once; nobody else spells one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CATALOG_FILE, MANIFEST_FILE, PLAN_FILE = "catalog.parquet", "manifest.json", "plan.json"
SHARDS_FOLDER = "shards"
_PREPROCESS_RECIPE, _PREPROCESS_LOCK = "preprocess.recipe.json", ".preprocess.lock"
# What preprocessing makes before anything else. A catalog is none of them: a user's table may have its name.
_MARKS = frozenset({_PREPROCESS_RECIPE, _PREPROCESS_LOCK})
# Beside every tokenizer.json, by the custom of the Hugging Face hub.
TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"


class SearchFolder:
    """What one search leaves, or several of them and their mean.

    Attributes:
        mixture: the answer; written last.
        trajectory: the mixture after every update.
        recipe: the sections that the search went by.
        trials: short proxies on the mixtures proposed, as far as they are made.
        reference: losses of the reference run.
        metrics: what happened so far, a line of JSON each; grows while the search runs.
        logs: folder with what each rank has to say.
        tensorboard: folder of event files, where they are asked for.
        checkpoints: folder with what a stopped search goes on from.
        lock: held while a search works here.
    """

    def __init__(self, root: Path) -> None:
        """Name what lies in a folder; nothing is opened."""
        self.root = root
        self.mixture = root / "mixture.json"
        self.trajectory = root / "trajectory.parquet"
        self.recipe = root / "recipe.json"
        self.trials = root / "trials.json"
        self.reference = root / "reference.json"
        self.metrics = root / "metrics.jsonl"
        self.logs = root / "logs"
        self.tensorboard = root / "tensorboard"
        self.checkpoints = root / "checkpoints"
        self.lock = root / ".lock"

    def checkpoints_of(self, run: str) -> Path:
        """Folder of the checkpoints of a proxy that a search trains: along the scores, as the reference, or as a trial."""
        return self.checkpoints / run

    def of_seed(self, seed: int) -> SearchFolder:
        """Folder of one of several searches."""
        return SearchFolder(self.root / f"seed-{seed}")

    def running(self) -> SearchFolder:
        """The folder that was written to last: this one, or that of one of several searches."""
        folders = [self, *(SearchFolder(path.parent) for path in self.root.glob(f"seed-*/{self.metrics.name}"))]
        return max(folders, key=lambda folder: folder.metrics.stat().st_mtime_ns if folder.metrics.exists() else 0)

    def rank_log(self, rank: int) -> Path:
        """What a rank has to say."""
        return self.logs / f"rank-{rank:05d}.log"


class RunFolder:
    """A proxy that a comparison trained on a fixed mixture.

    Attributes:
        proxy: its parameters.
        record: mixture, seed and cost; written after the parameters, so a run with it is complete.
        losses: by half, sample size and target, as far as they were asked for.
        likelihoods: of each sequence, likewise.
        checkpoints: of the proxy in training.
    """

    def __init__(self, root: Path) -> None:
        """Name what lies in a folder; nothing is opened."""
        self.root = root
        self.proxy = root / "proxy.pt"
        self.record = root / "run.json"
        self.losses = root / "losses.json"
        self.likelihoods = root / "likelihoods.json"
        self.checkpoints = root / "checkpoints"


class CompareFolder:
    """What comparisons leave: the result, and proxies and searches by what decides them.

    Attributes:
        comparison: the result.
        picture: of the result.
        lock: held while a comparison works here.
    """

    def __init__(self, root: Path) -> None:
        """Name what lies in a folder; nothing is opened."""
        self.root = root
        self.comparison = root / "compare.json"
        self.picture = root / "compare.svg"
        self.lock = root / ".lock"

    def run(self, identity: str) -> RunFolder:
        """A proxy."""
        return RunFolder(self.root / "runs" / identity)

    def found(self, kind: str, identity: str) -> Path:
        """The mixture that a method found."""
        return self.root / "found" / f"{kind}-{identity}.json"

    def checkpoints_of(self, kind: str, identity: str) -> Path:
        """Folder of the checkpoints of a proxy that a method trains while it finds its mixture."""
        return self.root / "found" / f"{kind}-{identity}.checkpoints"

    def search(self, identity: str) -> SearchFolder:
        """A search that is not the workdir's own."""
        return SearchFolder(self.root / "searches" / identity)


class ManifestFolder:
    """A corpus to ship.

    Attributes:
        manifest: what was asked for and what came out; written last.
        parts: a row per range of blocks.
        plan: of a catalog over a sample, what the manifest will be about; in its place.
    """

    def __init__(self, root: Path) -> None:
        """Name what lies in a folder; nothing is opened."""
        self.root = root
        self.manifest = root / MANIFEST_FILE
        self.parts = root / "parts.parquet"
        self.plan = root / PLAN_FILE

    def after(self, tokens: int) -> ManifestFolder:
        """Folder of the manifest that takes over from this one, or from another beside it, after so many tokens of the run."""
        return ManifestFolder(self.root.resolve().parent / f"manifest-after-{tokens}")


class MaterializedFolder(ManifestFolder):
    """A corpus whose shards hold the sequences of a run in its order.

    Attributes:
        origin: a copy of the manifest that the run is of.
    """

    def __init__(self, root: Path) -> None:
        """Name what lies in a folder; nothing is opened."""
        super().__init__(root)
        self.origin = ManifestFolder(root / "origin")

    def shard(self, number: int) -> Path:
        """A shard, by its place in the run."""
        return self.root / SHARDS_FOLDER / f"run-{number:06d}.tar"


class ExportFolder:
    """A manifest in another trainer's format, and beside it what tells how far it is.

    Attributes:
        begun: what it is made from; written first.
        receipts: folder with a file for each task that is done.
        record: files and their sizes; written last.
        lock: held while an export works here.
    """

    def __init__(self, root: Path) -> None:
        """Name what lies in a folder; nothing is opened."""
        self.root = root
        own = root / ".fastmix"
        self.begun = own / "begun.json"
        self.receipts = own / "receipts"
        self.record = own / "export.json"
        self.lock = own / ".lock"

    def receipt_of(self, task: str) -> Path:
        """Proof that a task is done, by its name."""
        return self.receipts / f"{task}.json"


class Workdir:
    """Everything that a run makes.

    Attributes:
        catalog: a row per shard; written last by preprocess.
        tokenizer: the tokenizer of all shards.
        tokenizer_config, chat_template: what came with it, if anything did.
        tokenizer_origin: what the tokenizer was made from.
        preprocess_recipe: the sections that the shards were made from.
        preprocess_lock: held while a preprocess run works here.
        shards, documents, receipts: folders; of the last two, each partition has a file in either.
        sample: the catalog over a sample that is or was here, and what it said of the sizes; only where there was one.
        quarantine: folder with a file for each partition that left out bad records, where the recipe wants them kept.
        search, compare, manifest: folders of these commands.
        report: the page about all of it.
        slurm: folder with scripts and logs of jobs.
    """

    def __init__(self, root: Path) -> None:
        """Name what lies in a folder; nothing is opened."""
        self.root = root
        self.catalog = root / CATALOG_FILE
        self.tokenizer = root / "tokenizer" / "tokenizer.json"
        self.tokenizer_config = root / "tokenizer" / TOKENIZER_CONFIG_FILE
        self.chat_template = root / "tokenizer" / CHAT_TEMPLATE_FILE
        self.tokenizer_origin = root / "tokenizer" / "origin.json"
        self.preprocess_recipe = root / _PREPROCESS_RECIPE
        self.preprocess_lock = root / _PREPROCESS_LOCK
        self.sample = root / "sample.json"
        self.shards, self.documents, self.receipts = root / SHARDS_FOLDER, root / "documents", root / "receipts"
        self.quarantine = root / "quarantine"
        self.search = SearchFolder(root / "search")
        self.compare = CompareFolder(root / "compare")
        self.manifest = ManifestFolder(root / "manifest")
        self.report = root / "report.html"
        self.slurm = root / "slurm"

    def shard(self, source: str, split: str, partition: int, number: int) -> Path:
        """A shard; the catalog has this path relative to the workdir."""
        return self.shards / source / f"{split}-{partition:06d}-{number:05d}.tar"

    def documents_of(self, partition: str) -> Path:
        """Table of a partition's documents, by the partition's label."""
        return self.documents / f"{partition}.parquet"

    def quarantine_of(self, partition: str) -> Path:
        """Bad records of a partition, by its label: JSON lines with file, locator, reason and the record itself."""
        return self.quarantine / f"{partition}.jsonl"

    def export(self, name: str) -> Path:
        """Folder of the manifest in another trainer's format, where none is named."""
        return self.root / f"export-{name}"

    def receipt_of(self, partition: str) -> Path:
        """Proof that a partition is done, by its label."""
        return self.receipts / f"{partition}.json"


def is_workdir_listing(names: Iterable[str]) -> bool:
    """Whether a folder with entries of these names is a workdir, finished or not."""
    return not _MARKS.isdisjoint(names)


def workdir_above(path: Path) -> Workdir | None:
    """The nearest workdir at or above a path: the folder that has a catalog."""
    start = path.resolve()
    return next((Workdir(folder) for folder in (start, *start.parents) if (folder / CATALOG_FILE).is_file()), None)
