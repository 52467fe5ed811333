"""What an export format is: tasks that write files on any machine, and a last step that ties them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.order import ManifestOrder
from fastmix_data.manifest.written_order import WrittenOrder, order_of
from fastmix_data.recipe.exports import DEFAULT_FILE_BYTES

Files = Literal["reference", "hardlink", "copy"]
OnTokens = Callable[[int], None]
Receipt = dict[str, Any]
NO = "no"
_Plan = TypeVar("_Plan")


@dataclass(frozen=True)
class ExportRequest:
    """What is to be written where.

    Attributes:
        root: folder that the parts' paths start from, absolute.
        directory: of the export, absolute.
        files: how whole shards come into an export that can use them as they are.
        max_file_bytes: a file of converted tokens is closed before it grows past this.
        sequence_length: of the sequences that a format cuts the run into, if it does; the manifest's own when None.
    """

    manifest: Manifest
    root: Path
    directory: Path
    files: Files = "reference"
    max_file_bytes: int = DEFAULT_FILE_BYTES
    sequence_length: int | None = None
    _planned: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, plan: Callable[[ExportRequest], _Plan]) -> _Plan:
        """What a format plans for this request: made when first asked for, by a function whose result is not changed."""
        if plan not in self._planned:
            self._planned[plan] = plan(self)
        planned: _Plan = self._planned[plan]
        return planned

    def __getstate__(self) -> dict[str, Any]:
        """Without plans: a task has what it needs of them."""
        return {**self.__dict__, "_planned": {}}

    @property
    def length(self) -> int:
        """The sequence length, said or not."""
        return self.sequence_length or self.manifest.default_sequence_length

    @cached_property
    def order(self) -> ManifestOrder | WrittenOrder:
        """The run's sequences of this length, in order; made once, and sent to workers with the request.

        Raises:
            RecipeError: the manifest's blocks cannot be cut into sequences of this length.
            MismatchError: the manifest continues one that was read in sequences of another length.
        """
        return order_of(self.manifest, sequence_length=self.length)


class ExportTask(Protocol):
    """A piece of an export: one file, or a few that belong together, written atomically and alike wherever it runs.

    It travels to a worker by pickle, and the request once for all tasks: a task names parts by their numbers.
    """

    @property
    def name(self) -> str:
        """Unique in the export; its receipt is called so."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens that it passes, for the progress bar."""
        ...

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Write the files.

        Returns:
            JSON-able. `files` lists what was written, as paths relative to the export's folder; the rest is for `finish`.
        """
        ...


@dataclass(frozen=True)
class Keeps:
    """What of a manifest the other trainer's reader sees. Each is a few words for a table: "yes", "no", or what there is of it.

    Attributes:
        order: the manifest's own order of sequences.
        shares: tokens of each source as parts of the whole.
        epochs: how often each block is read, neither more nor less.
        masks: that only some tokens carry loss.
        examples: where examples begin within a sequence, for attention and positions.
        phases: that one mixture follows another.
        begun_epochs: that an earlier manifest read part of an epoch, of which this one has the rest.
    """

    order: str
    shares: str
    epochs: str
    masks: str
    examples: str
    phases: str = NO
    begun_epochs: str = NO


class ExportFormat(Protocol):
    """The format of one trainer."""

    @property
    def name(self) -> str:
        """As `fastmix export --to` takes it."""
        ...

    @property
    def reader(self) -> str:
        """Who reads it, with the versions that the tests ran."""
        ...

    @property
    def writes(self) -> str:
        """What it writes, in a few words."""
        ...

    @property
    def keeps(self) -> Keeps:
        """What its reader sees of a manifest."""
        ...

    @property
    def runs_in(self) -> Literal["threads", "processes"]:
        """What several tasks are done by at once on one machine: threads where nearly all of a task is hashing, copying and NumPy, which
        let other threads run, for processes take seconds to start."""
        ...

    def check(self, request: ExportRequest) -> Sequence[str]:
        """Look at a manifest before anything is written.

        Returns:
            Sentences about what this manifest has and the format cannot say; they are printed and kept in the export's record.

        Raises:
            FastmixError: the format cannot hold this manifest at all.
        """
        ...

    def tasks(self, request: ExportRequest) -> Sequence[ExportTask]:
        """Everything that has to be written before `finish`, in a fixed order; may be none."""
        ...

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:
        """Write the files that name the others (blends, indices, configurations), given the receipts by name of the task.

        Returns:
            Their paths, relative to the folder, the one that a trainer is given first.
        """
        ...
