"""A manifest as Megatron-LM's `.bin` and `.idx` files with a blend, for its GPTDataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.errors import FastmixError
from fastmix_data.exports.format import ExportRequest, Receipt
from fastmix_data.exports.nvidia.corpus import MegatronFiles, corpus_of

ARGUMENTS = "arguments.txt"
SPLITS = "splits.json"
BLEND = "blend.txt"


class _Megatron(MegatronFiles):
    name = "megatron"
    reader = "megatron-core 0.16.1"
    writes = "an .idx for each shard, which stays the .bin, or both with --files copy; blends of training and validation"

    def check(self, request: ExportRequest) -> Sequence[str]:
        if len(str(request.directory).split()) != 1:
            raise FastmixError(request.directory, "Megatron splits a blend at blanks", "name a folder without any with --out")
        return super().check(request)

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:
        del receipts  # the files' names follow from the request
        corpus, directory = corpus_of(request), request.directory
        # All three splits have to be there; a list, unlike null, may not be empty.
        write_json(directory / SPLITS, {"train": corpus.train_blend, "valid": corpus.valid_blend or None, "test": None})
        arguments = {
            "--per-split-data-args-path": directory / SPLITS,
            "--seq-length": corpus.sequence_length,
            "--train-samples": corpus.num_train_samples,
        }
        for name, words in ((BLEND, corpus.train_blend), (ARGUMENTS, [word for pair in arguments.items() for word in pair])):
            with atomic_file(directory / name) as file:
                lines = (f"{first} {second}\n" for first, second in zip(words[::2], words[1::2], strict=True))
                file.write("".join(lines).encode())
        return (ARGUMENTS, SPLITS, BLEND)


FORMAT = _Megatron()
