"""How long training stands still for a checkpoint, beside the plain way: writing everything before the next step.

One rank; with several each copies and writes its share. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.recipe.training import TrainingSection
from train.checkpoints.checkpoints import CheckpointPlan, Checkpoints
from train.checkpoints.tensor_files import Runs
from train.proxy.engine import ProxyEngine, process_group
from train.proxy.losses import ModelInputs

WIDTHS = {10: (256, 8), 30: (512, 8), 100: (768, 12)}  # width and layers for about so many million parameters
LENGTH = 32
TRAINING = TrainingSection(token_budget=10**6, global_batch=1, sequence_length=LENGTH, precision="fp32")


def build(width: int, layers: int) -> ProxyEngine:
    """A fresh proxy."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 8, "intermediate_size": 8 * width // 3}
    config = AutoConfig.for_model("llama", vocab_size=8000, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return ProxyEngine(model, training=TRAINING, deepspeed=DeepspeedSection(zero_stage=1), micro_batch=1)


def step(engine: ProxyEngine) -> float:
    """Seconds of an optimiser step."""
    tokens, started = torch.randint(8000, (1, LENGTH + 1), device=engine.device), time.monotonic()
    engine.backward(engine.sequence_losses(ModelInputs(tokens[:, :-1]), tokens[:, 1:]).mean())
    engine.step(1e-3, last_micro_batch=True)
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - started


def nothing() -> tuple[dict[str, float], Runs]:
    """What a run adds."""
    return {}, {}


def measure(millions: int, folder: Path) -> str:
    """A row of the table."""
    engine = build(*WIDTHS[millions])
    plain = [step(engine) for _ in range(6)][2:]
    with Checkpoints(CheckpointPlan(folder, {}, num_steps=1), engine) as checkpoints:
        stalls, during, written = [], [], []
        for number in range(1, 4):  # the first one takes the memory for the copies
            started = time.monotonic()
            checkpoints.after_step(10 * number, nothing)
            stalls.append(time.monotonic() - started)
            while checkpoints.is_writing:
                during.append(step(engine))
            written.append(time.monotonic() - started)
            checkpoints.finish()
        started = time.monotonic()
        checkpoints.save(100, nothing)
        at_once = time.monotonic() - started
    size = sum(path.stat().st_size for path in (folder / "step-00000100").iterdir())
    row = [
        f"{engine.num_parameters / 1e6:.0f} M",
        f"{size / 1e6:.0f} MB",
        f"{stalls[0]:.2f} s",
        f"{statistics.median(stalls[1:]):.2f} s",
        f"{statistics.median(written):.1f} s",
        f"{at_once:.1f} s",
        f"{statistics.median(plain):.2f} s",
        f"{statistics.median(during):.2f} s" if during else "-",
    ]
    engine.close()
    return f"| {' | '.join(row)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, nargs="*", default=list(WIDTHS))
    parser.add_argument("--folder", type=Path, help="on the disk that is to be written to")
    options = parser.parse_args()
    heads = (
        "parameters",
        "on disk",
        "stands still, first",
        "then",
        "until written",
        "written at once",
        "a step",
        "a step meanwhile",
    )
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    with process_group(rank=0, world_size=1):
        for millions in options.millions:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                print(measure(millions, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
