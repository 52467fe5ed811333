"""Memory and time of a pass with a large vocabulary: logits whole and cut, activations kept and computed once more.

    python scripts/bench/pass_memory.py [--vocabulary 131072] [--length 2048] [--layers 8] [--largest-logits 64 128 256]

Each line is a process of its own: the peak of its resident memory (of the GPU's, where there is one) over what the model and a first
short pass took, for a training pass, a target gradient and a scored pass; the ratio is to logits whole and activations kept. Losses and
scores must be those of that line.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from train.proxy import loss_model
from train.proxy.loss_model import LossModel
from train.proxy.losses import ModelInputs
from train.proxy.recomputation import recompute_blocks
from train.scores.hypergradient import HypergradientProbe

BATCH, WARM_LENGTH = 1, 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_bytes() -> int:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(options: argparse.Namespace, *, kind: str, largest_logits: int, recomputed: bool) -> dict[str, object]:
    """One pass in this process."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        intermediate_size=3 * options.width,
        max_position_embeddings=options.length,
        use_cache=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    loss_model.LARGEST_LOGITS_BYTES = largest_logits
    losses = LossModel(model, shape=(BATCH, options.length)).to(DEVICE)
    if recomputed:
        recompute_blocks(model)
    tokens = torch.randint(0, options.vocabulary, (BATCH, options.length + 1), device=DEVICE)
    probe = HypergradientProbe(model, scope="all")

    def loss_on(length: int) -> torch.Tensor:
        return losses(tokens[:, 1 : length + 1], **losses.arguments(ModelInputs(tokens[:, :length]))).sum()

    def train(length: int) -> float:
        model.train()
        loss = loss_on(length)
        loss.backward()
        return float(loss.detach())

    def differentiate(length: int) -> float:
        model.eval()
        probe.target_gradient(loss_on(length) for _ in range(1))
        return math.hypot(*(float(v.norm()) for v in probe.whole_target()))

    def score(length: int) -> float:
        model.eval()
        with probe.scoring((BATCH, length)) as alignments:
            probe.backward(loss_on(length))
        return float(alignments()[0])

    passes: dict[str, Callable[[int], float]] = {"training": train, "target gradient": differentiate, "scored": score}
    differentiate(WARM_LENGTH)  # scoring needs one, and every kind then has the gradient's memory behind it
    passes[kind](WARM_LENGTH)
    before, started = peak_bytes(), time.perf_counter()
    result = passes[kind](options.length)
    return {"bytes": peak_bytes() - before, "seconds": time.perf_counter() - started, "result": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=2**17)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--largest-logits", type=int, nargs="+", default=[128], help="in MiB")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options, **json.loads(options.one))))
        return
    whole = 1 << 62
    ways = [(whole, False), *((size << 20, False) for size in options.largest_logits), (whole, True)]
    ways += [(size << 20, True) for size in options.largest_logits]
    print("| pass | logits | activations | peak, MiB | of the first | seconds | of the first |\n|---|---|---|---|---|---|---|")
    for kind in ("training", "target gradient", "scored"):
        first: dict[str, float] = {}
        for largest_logits, recomputed in ways:
            one = json.dumps({"kind": kind, "largest_logits": largest_logits, "recomputed": recomputed})
            finished = subprocess.run([sys.executable, *sys.argv, "--one", one], capture_output=True, text=True, check=True)
            found = json.loads(finished.stdout.splitlines()[-1])
            first = first or found
            assert abs(found["result"] / first["result"] - 1) < 1e-4, (found, first)
            cut = "whole" if largest_logits == whole else f"in pieces of {largest_logits >> 20} MiB"
            print(
                f"| {kind} | {cut} | {'computed once more' if recomputed else 'kept'} | {found['bytes'] / 2**20:,.0f} | "
                f"{found['bytes'] / first['bytes']:.2f} | {found['seconds']:.1f} | {found['seconds'] / first['seconds']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
