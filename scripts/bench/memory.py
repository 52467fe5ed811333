"""What is foreseen of a rank's memory, beside what a real run's tensors take: bytes at the highest point of training and of scoring.

    python scripts/bench/memory.py [--parameters 10 100 300] [--stages 0 1 2 3] [--ranks 2] [--precision bf16]

Each row is a run of real ranks: a llama is spread by DeepSpeed, trains for two steps of two passes and scores a batch. On the CPU every
tensor that an operation returns is counted while it lives; on a GPU torch counts what it has handed out. Models that are named with
--foreseen are not run.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import torch

from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.training import TrainingSection
from train.memory.fitting_batch import memory_of
from train.memory.live_bytes import LiveBytes
from train.memory.pass_memory import meta_model
from train.proxy.engine import ProxyEngine, process_group
from train.proxy.launch import launch_ranks
from train.proxy.losses import ModelInputs
from train.proxy.training import ProxyPlan
from train.scores.hypergradient import HypergradientProbe
from train.scores.parameter_shares import Spread

_ON_GPU = torch.cuda.is_available()
_VOCABULARY, _LENGTH = 32_000, 1024 if _ON_GPU else 256
_MICRO_BATCHES = 2


@dataclass(frozen=True)
class Shape:
    """Of a llama."""

    width: int
    layers: int


SHAPES = {10: Shape(128, 8), 100: Shape(512, 20), 300: Shape(1024, 18), 1000: Shape(2048, 17)}


class CardBytes:
    """What torch has handed out of this process's GPU, as `LiveBytes` tells it of the CPU."""

    def __enter__(self) -> Self:
        """Start counting."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    @property
    def peak(self) -> int:
        """The most since it was last set, which means to start anew."""
        return torch.cuda.max_memory_allocated()

    @peak.setter
    def peak(self, _: int) -> None:
        torch.cuda.reset_peak_memory_stats()

    @property
    def live(self) -> int:
        """Now."""
        return torch.cuda.memory_allocated()


def plan_of(millions: int, *, stage: int, num_ranks: int, precision: str, num_sequences: int = 1) -> ProxyPlan:
    """A llama of about so many parameters."""
    shape = SHAPES[millions]
    config = {
        "model_type": "llama",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.width // 64,
        "intermediate_size": shape.width * 11 // 4,
    }
    training = TrainingSection(
        token_budget=10**9,
        sequence_length=_LENGTH,
        global_batch=num_ranks * _MICRO_BATCHES * num_sequences,
        micro_batch=num_sequences,
        precision=cast(Any, precision),
    )
    catalog = cast(Any, SimpleNamespace(info=SimpleNamespace(vocab_size=_VOCABULARY)))
    return ProxyPlan(catalog, ProxySection(config=config), Path(), training, DeepspeedSection(zero_stage=cast(Any, stage)), None)


def score(engine: ProxyEngine, probe: HypergradientProbe, inputs: ModelInputs, labels_BT: torch.Tensor) -> None:
    """Take a target gradient, and score the same batch against it."""
    engine.module.eval()
    probe.target_gradient(engine.bare_sequence_losses(inputs, labels_BT).sum() for _ in range(1))
    probe.remember()
    with probe.scoring((labels_BT.shape[0], labels_BT.shape[1])):
        probe.backward(engine.bare_sequence_losses(inputs, labels_BT).sum())
    engine.module.train()
    probe.release()


def measure(plan: ProxyPlan, path: Path, rank: int, world_size: int, rendezvous: str) -> None:
    """Train and score on this rank, and write the highest points."""
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        highest = highest_points(plan)
        if rank == 0:
            path.write_text(" ".join(map(str, highest)))


def highest_points(plan: ProxyPlan) -> list[int]:
    """Bytes of training and of scoring, once everything is there that is kept."""
    torch.set_num_threads(1)
    batch = int(plan.training.micro_batch)
    with CardBytes() if _ON_GPU else LiveBytes() as live:
        engine = plan.build_engine(seed=0)
        spread = Spread(engine.rank, engine.world_size, sharded=engine.shards_gradients)
        probe = HypergradientProbe(engine.module, scope="all", memory=0.9, spread=spread)
        tokens_BT = torch.randint(_VOCABULARY, (batch, _LENGTH), device=engine.device)
        inputs, highest = ModelInputs(tokens_BT), list[int]()
        for _ in range(2):
            live.peak = live.live
            for number in range(engine.num_micro_batches):
                engine.backward(engine.sequence_losses(inputs, tokens_BT).sum())
                engine.step(1e-4, last_micro_batch=number == engine.num_micro_batches - 1)
            highest.append(live.peak)
            live.peak = live.live
            score(engine, probe, inputs, tokens_BT)
            highest.append(live.peak)
        engine.close()
    return highest[-2:]


def foreseen_points(plan: ProxyPlan, *, num_ranks: int) -> list[int]:
    """The same as they are worked out."""
    num_sequences = int(plan.training.micro_batch)
    memory = memory_of(plan, num_ranks=num_ranks, num_sequences=num_sequences, is_scored=True, remembers=True)
    held = memory.parameters + memory.optimizer + memory.buckets + memory.remembered_gradient
    return [held + max(memory.backward, memory.step), held + memory.scoring]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, nargs="*", choices=list(SHAPES), default=[10, 100], help="millions, to run")
    parser.add_argument("--foreseen", type=int, nargs="*", choices=list(SHAPES), default=[300, 1000], help="millions, not to run")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    options = parser.parse_args()
    print(f"GB on each rank, {options.precision}, passes of one sequence of {_LENGTH} tokens, vocabulary {_VOCABULARY:,}\n")
    print("| parameters | ranks | ZeRO | training, foreseen | measured | ratio | scoring, foreseen | measured | ratio |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for millions, num_ranks, stage in product([*options.parameters, *options.foreseen], options.ranks, options.stages):
        plan = plan_of(millions, stage=stage, num_ranks=num_ranks, precision=options.precision)
        foreseen = foreseen_points(plan, num_ranks=num_ranks)
        measured: list[int] = []
        if millions in options.parameters:
            with tempfile.TemporaryDirectory(prefix="fastmix-bench-") as folder:
                path = Path(folder) / "highest"
                launch_ranks(measure, plan, path, num_ranks=num_ranks)
                measured = [int(found) for found in path.read_text().split()]
        model = sum(parameter.numel() for parameter in meta_model(plan).parameters())
        row = [f"{model / 1e6:.0f} M", str(num_ranks), str(stage)]
        for number, expected in enumerate(foreseen):
            found = measured[number] if measured else None
            row += [f"{expected / 1e9:.2f}", "" if found is None else f"{found / 1e9:.2f}"]
            row.append("" if found is None else f"{expected / found:.2f}")
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
