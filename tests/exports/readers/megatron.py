"""Megatron's own indexed data sets, and its blended builder with the arguments that an export gives; prints what they read.

Usage: megatron.py DIRECTORY [SEQUENCE_LENGTH NUM_TRAIN_SAMPLES]
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import get_blend_from_list


class Tokenizer:
    """As much of one as the data sets ask for."""

    vocab_size = 65536
    eod = eos = 0
    unique_identifiers = None


def main(directory: Path, *sizes: str) -> None:
    arguments = dict(line.split() for line in (directory / "arguments.txt").read_text().splitlines())
    length, num_samples = map(int, sizes or (arguments["--seq-length"], arguments["--train-samples"]))
    # As megatron.training takes them, which is no part of the package.
    splits = json.loads(Path(arguments["--per-split-data-args-path"]).read_text())
    blends = [get_blend_from_list(splits[split]) for split in ("train", "valid", "test")]
    assert get_blend_from_list((directory / "blend.txt").read_text().split()) == blends[0]
    with TemporaryDirectory() as cache:
        torch.distributed.init_process_group("gloo", init_method=f"file://{cache}/store", rank=0, world_size=1)
        config = GPTDatasetConfig(
            random_seed=1234,
            sequence_length=length,
            blend_per_split=blends,
            path_to_cache=f"{cache}/indices",
            tokenizer=Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        train, valid, _ = BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, None, None], lambda: True, config).build()
        windows = [train[number] for number in range(num_samples)]
        assert all(window["loss_mask"].all() for window in windows)
        result = {
            "files": [read_file(prefix) for prefix in blends[0][0]],
            "weights": blends[0][1],
            "train": [[int(window["dataset_id"]), window["tokens"].tolist(), int(window["labels"][-1])] for window in windows],
            "valid": [valid[number]["tokens"].tolist() for number in range(len(valid or ()))],
        }
    print(json.dumps(result))


def read_file(prefix: str) -> dict[str, object]:
    dataset = IndexedDataset(prefix)
    return {"prefix": prefix, "dtype": str(dataset[0].dtype), "sequences": [dataset[n].tolist() for n in range(len(dataset))]}


main(Path(sys.argv[1]), *sys.argv[2:])
