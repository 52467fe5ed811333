"""What `datasets` makes of an export: rows of every configuration of the card, and the stream of the script beside it.

python huggingface.py FOLDER CACHE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

folder, cache = sys.argv[1:]
os.environ |= {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
sys.path.insert(0, folder)

import datasets  # noqa: E402
import interleave  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

# Each stream of a configuration ends with five seconds of sleep, for a bug of Arrow's with files of a hub.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
STRATEGIES = (interleave.EXACT, interleave.FIRST, interleave.ALL)


def items(streaming: bool) -> list[dict[str, Any]]:
    batches = DataLoader(interleave.training_stream(streaming=streaming), batch_size=4)
    return [{name: batch[name][row].tolist() for name in batch} for batch in batches for row in range(len(batch["input_ids"]))]


print(
    json.dumps(
        {
            "configs": {
                name: datasets.load_dataset(folder, name)["train"].to_list() for name in datasets.get_dataset_config_names(folder)
            },
            "items": items(False),
            "streamed": items(True),
            "sources": {name: interleave.ordered_blocks(stopping_strategy=name)["source"][:] for name in STRATEGIES},
            "printed": subprocess.run(
                [sys.executable, f"{folder}/interleave.py"], capture_output=True, text=True, check=True
            ).stdout,
        }
    )
)
