"""What the check runs on; ends with a code of its own where there is no GPU to check."""

from __future__ import annotations

import os
import platform
import sys

import torch
from row import NO_GPU, ON_GPU, gib, say

from train.proxy.engine import prepare_environment


def main() -> None:
    if not ON_GPU and os.environ.get("FASTMIX_GPU_CHECK") != "cpu":
        print(f"no GPU: torch {torch.__version__} finds no CUDA device here; --cpu runs the same at tiny size without one")
        sys.exit(NO_GPU)
    prepare_environment()
    import deepspeed
    import transformers

    if ON_GPU:
        properties = torch.cuda.get_device_properties(0)
        card = f"{properties.name}, {gib(properties.total_memory)}; {torch.cuda.device_count()} in this machine"
    else:
        card = f"CPU, {torch.get_num_threads()} threads"
    packages = {"torch": torch, "deepspeed": deepspeed, "transformers": transformers}
    versions = ", ".join(f"{name} {package.__version__}" for name, package in packages.items())
    say("environment", card, f"Python {platform.python_version()}, {versions}")


if __name__ == "__main__":
    main()
