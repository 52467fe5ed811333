"""What OLMo-core reads of an export: FOLDER of it, and a folder for its own files."""

import json
import os
import sys
from pathlib import Path

# Documents from the tables beside the tokens: without it, local files are searched for the end-of-text token.
os.environ["OLMO_DATA_PREP_USE_ARRAY_IF_LOCAL"] = "metadata"

from olmo_core.data import NumpyFSLDatasetConfig
from olmo_core.data.utils import get_labels, iter_document_indices


def main(folder: Path, work_dir: Path) -> None:
    dataset = NumpyFSLDatasetConfig.from_file(folder / "dataset.json", overrides=[f"work_dir={work_dir}"]).build()
    dataset.prepare()
    items = [dataset[number] for number in range(len(dataset))]
    out = {
        "windows": [(item["metadata"]["label"], item["input_ids"].tolist()) for item in items],
        "labels": [
            get_labels({name: item[name][None] for name in ("input_ids", "label_mask") if name in item})[0].tolist()
            for item in items
        ],
        "documents": {
            os.path.relpath(path, folder): list(iter_document_indices(path, use_array_if_local=False, dtype=dataset.dtype))
            for path in dict.fromkeys(dataset.paths)
        },
        "dtype": dataset.dtype.__name__,
    }
    if (folder / "source_mixture.json").exists():
        config = NumpyFSLDatasetConfig.from_file(folder / "source_mixture.json", overrides=[f"work_dir={work_dir}"])
        built = config.source_mixture_config.build(npdtype=config.get_dtype(), sequence_length=config.sequence_length)
        out["mixture_tokens"] = {source.name: sum(path.tokens for path in source.path_tokens) for source in built.sources}
        mixture = config.build()
        mixture.prepare()
        out["mixture_windows"] = [mixture[number]["input_ids"].tolist() for number in range(len(mixture))]
    print(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
