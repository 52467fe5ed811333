"""A manifest for NeMo AutoModel's `megatron_dataset`: Megatron's token files, under a blend and a configuration of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from fastmix_data.atomic_files import atomic_file, write_json
from fastmix_data.exports.format import ExportRequest, Receipt
from fastmix_data.exports.nvidia.corpus import MegatronFiles, corpus_of

BLEND = "blend.json"
CONFIGURATION = "dataset.yaml"
_TARGET = "nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining"


class _NeMo(MegatronFiles):
    name = "nemo"
    reader = "nemo-automodel 0.7.0"
    writes = "Megatron's files with a JSON blend, and the section of a recipe that reads it"

    def finish(self, request: ExportRequest, receipts: Mapping[str, Receipt]) -> Sequence[str]:
        del receipts  # the files' names follow from the request
        corpus, directory = corpus_of(request), request.directory
        # Every split that is named has to have files, unlike in Megatron's own JSON.
        splits = {"train": corpus.train_blend, "valid": corpus.valid_blend}
        write_json(directory / BLEND, {name: blend for name, blend in splits.items() if blend})
        shared = {"_target_": _TARGET, "paths": str(directory / BLEND), "seq_length": corpus.sequence_length}
        sections = {"dataset": {**shared, "num_train_samples": corpus.num_train_samples, "splits_to_build": "train"}}
        if corpus.valid:
            sections["validation_dataset"] = {**shared, "splits_to_build": "validation"}
        with atomic_file(directory / CONFIGURATION) as file:
            file.write(yaml.safe_dump(sections, sort_keys=False).encode())
        return (CONFIGURATION, BLEND)


FORMAT = _NeMo()
