"""NeMo AutoModel's own Megatron data set, built from the section of a recipe that an export gives; prints what it reads.

Usage: nemo.py DIRECTORY
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed
import yaml
from nemo_automodel.components.datasets.llm.megatron.indexed_dataset import IndexedDataset
from nemo_automodel.components.datasets.llm.megatron_dataset import MegatronPretrainingConfig, try_load_blend_from_json
from nemo_automodel.components.datasets.loader import DatasetBuildSchedule

GLOBAL_BATCH = 8


class Tokenizer:
    """As much of one as the data sets ask for."""

    name_or_path = "none"
    pad_token_id = 65535
    eos_token_id = 0


def main(directory: Path) -> None:
    sections = yaml.safe_load((directory / "dataset.yaml").read_text())
    with TemporaryDirectory() as cache:
        torch.distributed.init_process_group("gloo", init_method=f"file://{cache}/store", rank=0, world_size=1)
        train, valid = (build(sections[name], cache) for name in ("dataset", "validation_dataset"))
        blend = try_load_blend_from_json(sections["dataset"]["paths"])["train"]
        files = [IndexedDataset(prefix) for prefix in blend[1::2]]
        result = {
            "files": [
                {"prefix": prefix, "sequences": [file[n].tolist() for n in range(len(file))]}
                for prefix, file in zip(blend[1::2], files, strict=True)
            ],
            "num_train_samples": sections["dataset"]["num_train_samples"],
            "train": [train[n]["input_ids"].tolist() for n in range(sections["dataset"]["num_train_samples"])],
            "valid": [valid[n]["input_ids"].tolist() for n in range(len(valid))],
        }
    print(json.dumps(result))


def build(section: dict[str, Any], cache: str) -> Any:
    arguments = {name: value for name, value in section.items() if name != "_target_"}
    steps = section.get("num_train_samples", 80) // GLOBAL_BATCH
    schedule = DatasetBuildSchedule(local_batch_size=4, global_batch_size=GLOBAL_BATCH, max_steps=steps, val_check_interval=1)
    config = MegatronPretrainingConfig(**arguments, index_mapping_dir=cache)
    return config.build(tokenizer=Tokenizer(), training_schedule=schedule)


main(Path(sys.argv[1]))
