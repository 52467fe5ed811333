"""A manifest for torchtitan: by reference, through a data loader of torchtitan's that reads shards, and a module that configures it.

torchtitan's own text loaders tokenize. What they are given as text would have to come out as the same tokens, which few tokenizers
promise, and they know neither labels without loss nor epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastmix_data.atomic_files import atomic_file
from fastmix_data.errors import MismatchError
from fastmix_data.exports.bring import bring
from fastmix_data.exports.format import ExportRequest, Keeps, OnTokens, Receipt
from fastmix_data.foreign.storage import lies_in_workdir
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.messages import and_more
from fastmix_data.workdir import ManifestFolder, Workdir

MODULE = "fastmix_corpus.py"
_MANIFEST, _TOKENIZER = "manifest", "tokenizer"
_CONFIGURATION = '''\
"""{tokens:,} tokens of {num_sources} sources for torchtitan: manifest {sha256}.

Needs fastmix where torchtitan runs; of what fastmix depends on, numpy, orjson, pyarrow and torch are enough. In a module of your own:

    from fastmix_corpus import on_corpus
    from torchtitan.models.llama3.config_registry import llama3_8b

    def llama3_8b_on_corpus():
        return on_corpus(llama3_8b())

and with both on the PYTHONPATH: run_train.sh with --module YOUR_MODULE --config llama3_8b_on_corpus. `training.seq_len` must {length}.
After {tokens:,} / (seq_len * global batch) steps or little more data has run out, and torchtitan ends.
"""

from pathlib import Path

from fastmix_data.trainers.torchtitan import ManifestDataLoader

HERE = Path(__file__).resolve().parent
VOCAB_SIZE = {vocab_size}
TOKENIZER = {tokenizer!r}  # of {tokenizer_sha256}; None where none lay beside the shards


def dataloader(**settings):
    """A loader over the corpus; settings are those of `ManifestDataLoader.Config`, as num_workers."""
    return ManifestDataLoader.Config(dataset_path=str(HERE / {manifest!r}), root={root}, **settings)


def on_corpus(config, **settings):
    """A trainer's configuration with this corpus as its data."""
    size = config.model_spec.model.vocab_size
    if size < VOCAB_SIZE:
        raise ValueError(f"the model has {{size}} tokens and the corpus {{VOCAB_SIZE}}; choose a model with a vocabulary as large")
    config.dataloader = dataloader(**settings)
    if TOKENIZER is not None:
        config.hf_assets_path = str(HERE / TOKENIZER)
    return config
'''


@dataclass(frozen=True)
class _BringShard:
    """A shard, linked or copied to its path in the manifest."""

    part: Part

    @property
    def name(self) -> str:
        return self.part.path.replace("/", "--")

    @property
    def num_tokens(self) -> int:
        return self.part.num_tokens

    def run(self, request: ExportRequest, on_tokens: OnTokens) -> Receipt:
        """Have it in the folder."""
        bring(request.root / self.part.path, self.part.path, directory=request.directory, files=request.files)
        on_tokens(self.num_tokens)
        return {"files": [self.part.path]}


class _TorchTitan:
    name = "torchtitan"
    reader = "torchtitan 0.3.0, its dataloader over fastmix's"
    writes = "a module that configures torchtitan's trainer, with a copy of the manifest; no tokens"
    runs_in: Literal["threads", "processes"] = "threads"
    keeps = Keeps(
        order="yes",
        shares="yes",
        epochs="yes",
        masks="yes, as labels of -100",
        examples="yes, as positions",
        phases="yes",
        begun_epochs="yes",
    )

    def check(self, request: ExportRequest) -> Sequence[str]:
        manifest, count = request.manifest, request.order.num_sequences
        imported = {part.source: None for part in manifest.parts if not lies_in_workdir(part.storage)}
        if request.files != "reference" and imported:
            problem = (
                f"reads imported files of {and_more(list(imported))} at the paths that it names, and a copy would lie elsewhere"
            )
            remedy = "export with --files reference, or `fastmix materialize` it first and export what that writes"
            raise MismatchError(manifest.path, problem, remedy)
        return (f"torchtitan takes full batches: of {count} sequences the last that do not fill one on every rank are left out",)

    def tasks(self, request: ExportRequest) -> Sequence[_BringShard]:
        if request.files == "reference":
            return []
        return [_BringShard(part) for part in {part.path: part for part in request.manifest.parts}.values()]

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:  # noqa: ARG002
        manifest, directory = request.manifest, request.directory
        found, tokenizer = ManifestFolder(manifest.directory), _tokenizer_files(request)
        # Parts first: a folder without manifest.json holds none. A copy, since `emit --replace` writes over the manifest.
        copies = {f"{_MANIFEST}/{path.name}": path for path in (found.parts, found.manifest)} | tokenizer
        for name, path in copies.items():
            bring(path, name, directory=directory, files="copy")
        text = _CONFIGURATION.format(
            tokens=manifest.num_tokens,
            num_sources=len(manifest.sources),
            sha256=manifest.sha256,
            length=_wanted_length(manifest),
            vocab_size=manifest.vocab_size,
            tokenizer=_TOKENIZER if tokenizer else None,
            tokenizer_sha256=manifest.tokenizer_sha256,
            manifest=_MANIFEST,
            root=repr(str(request.root)) if request.files == "reference" else "str(HERE)",
        )
        with atomic_file(directory / MODULE) as file:
            file.write(text.encode())
        return (MODULE, *copies)


FORMAT = _TorchTitan()


def _wanted_length(manifest: Manifest) -> str:
    if manifest.after is not None:
        return f"be {manifest.after.sequence_length}, as in the run that this one continues"
    window = "" if manifest.example_tokens is None else f" and be a multiple of {manifest.example_tokens}"
    return f"divide {manifest.block_tokens}{window}"


def _tokenizer_files(request: ExportRequest) -> dict[str, Path]:
    """The tokenizer and what came with it, by name in the export; torchtitan wants one, if only for a validation set of its own."""
    paths = Workdir(request.root)
    found = (paths.tokenizer, paths.tokenizer_config, paths.chat_template)
    return {f"{_TOKENIZER}/{path.name}": path for path in found if path.is_file() and paths.tokenizer.is_file()}
