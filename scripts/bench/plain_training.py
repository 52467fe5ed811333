"""fastmix's training loop beside `transformers` with DeepSpeed in a loop by hand: same model, batch, precision, ZeRO stage, tokens.

    python scripts/bench/plain_training.py [--size 0.5M] [--stages 0 1 2] [--ranks 1 2] [--rounds 9]

Each round trains a fresh proxy for some steps with each of three, in turning order: `train_on_mixture`; the loop by hand, whose
`DataLoader` reads the same shards' tokens out of a memory map of one file; and the search, which scores as it trains. Set-up and the
first step are left out, reading is not. The columns are medians over rounds, ratios those of ratios within a round. MFU counts 6
operations a parameter and token and 12 for each layer, width and position (PaLM, arXiv 2204.02311, appendix B), of a peak that is
given, or else is that of a product of large matrices on this device.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from search_overhead import make_catalog, make_plan
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.shards.catalog import Catalog
from train.proxy.deepspeed_config import computes_in_bf16, stage_taken
from train.proxy.engine import own_device, process_group
from train.proxy.launch import launch_ranks
from train.proxy.training import train_on_mixture
from train.search.plan import SearchPlan
from train.search.search import build_run
from train.search.start import Start, counted_start

NUM_SOURCES = 8
SIZES: dict[str, tuple[dict[str, int], int, int]] = {  # shape of a llama, batch, length
    "0.5M": ({"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 344}, 32, 128),
    "10M": ({"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 688}, 128, 512),
    "100M": ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048}, 32, 1024),
    "300M": ({"hidden_size": 1024, "num_hidden_layers": 22, "num_attention_heads": 16, "intermediate_size": 2816}, 16, 1024),
    "1B": ({"hidden_size": 2048, "num_hidden_layers": 19, "num_attention_heads": 16, "intermediate_size": 5632}, 8, 1024),
}


@dataclass(frozen=True)
class Setting:
    """A row of the table."""

    size: str
    stage: int
    precision: str
    num_steps: int
    rounds: int
    peak_tflops: float | None = None
    cpu_time: bool = False
    compile: bool = False


class MappedTokens(Dataset[torch.Tensor]):
    """Sequences of one flat file of tokens, as small trainers read them."""

    def __init__(self, path: Path, length: int) -> None:
        self._tokens, self._length = np.memmap(path, np.uint16, "r"), length

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._length

    def __getitem__(self, number: int) -> torch.Tensor:
        start = number * self._length
        return torch.from_numpy(self._tokens[start : start + self._length].astype(np.int64))


def write_flat(catalog: Catalog, path: Path) -> None:
    """The training shards' tokens in one file."""
    rows = [row for name in catalog.sources for row in catalog.shards(name, "train")]
    views = [catalog.open(row).sequences(catalog.info.block_tokens).tokens for row in rows]
    np.concatenate([view[..., :-1].reshape(-1) for view in views]).tofile(path)


def plan_of(catalog: Catalog, setting: Setting) -> SearchPlan:
    shape, batch, length = SIZES[setting.size]
    plan = make_plan(
        catalog,
        proxy={"model_type": "llama", **shape},
        training={"global_batch": batch, "sequence_length": length, "precision": setting.precision},
        search={"target_batch": max(2, batch // 2), "initial_weights": "uniform"},
    )
    return replace(plan, proxy=replace(plan.proxy, deepspeed=DeepspeedSection(zero_stage=setting.stage)))


class Stopwatch:
    """Seconds from the end of the first step to that of the last; a first step pays for what allocators keep."""

    def __init__(self, setting: Setting) -> None:
        self._last, self._clock = setting.num_steps + 1, time.process_time if setting.cpu_time else time.perf_counter
        self._first_ended = self.seconds = 0.0

    def __call__(self, step: int) -> None:
        if step in (1, self._last):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds, self._first_ended = self._clock() - self._first_ended, self._clock()


def ours(plan: SearchPlan, setting: Setting) -> float:
    """Seconds of our loop."""
    watch = Stopwatch(setting)
    weights_K = np.full(NUM_SOURCES, 1 / NUM_SOURCES)
    run = train_on_mixture(plan.proxy.with_steps(setting.num_steps + 1), weights_K, seed=0, on_step=lambda step, _: watch(step))
    run.engine.close()
    return watch.seconds


def scored(plan: SearchPlan, setting: Setting, start: Start) -> float:
    """Seconds of a search's first steps."""
    watch = Stopwatch(setting)
    run, engine, _ = build_run(plan, dist.get_world_size(), start=start)
    for step in range(setting.num_steps + 1):
        run.search_step()
        watch(step + 1)
    engine.close()
    return watch.seconds


def by_hand(plan: SearchPlan, setting: Setting, flat: Path) -> float:
    """Seconds of the loop that one would write."""
    import deepspeed

    training, world = plan.proxy.training, dist.get_world_size()
    on_gpu = torch.cuda.is_available()
    model: Any = plan.proxy.build_model(seed=0)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=training.adam_betas,
        weight_decay=training.weight_decay,
        fused=on_gpu,
    )
    config = {
        "train_micro_batch_size_per_gpu": training.global_batch // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.gradient_clipping,
        "zero_optimization": {"stage": stage_taken(training, plan.proxy.deepspeed)},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": computes_in_bf16(training)},
        "steps_per_print": 10**12,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    tokens = MappedTokens(flat, training.sequence_length)
    sampler: Any = DistributedSampler(tokens, world, dist.get_rank(), shuffle=True)
    size, workers = training.global_batch // world, 2 if on_gpu else 0
    loader = DataLoader(tokens, size, sampler=sampler, num_workers=workers, pin_memory=on_gpu, drop_last=True)
    batches = chain.from_iterable(repeat(loader))

    watch = Stopwatch(setting)
    for step in range(setting.num_steps + 1):
        inputs = next(batches).to(engine.device, non_blocking=True)
        engine.backward(engine(input_ids=inputs, labels=inputs).loss)
        engine.step()
        watch(step + 1)
    engine.destroy()
    return watch.seconds


def peak_of(plan: SearchPlan, setting: Setting) -> float:
    """Operations a second of all ranks together: as given, or of a product of large matrices, the best of some tries."""
    if setting.peak_tflops is not None:
        return setting.peak_tflops * 1e12 * dist.get_world_size()
    device, size = own_device(), 8192 if torch.cuda.is_available() else 1024
    dtype = torch.bfloat16 if computes_in_bf16(plan.proxy.training) else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    taken = []
    for _ in range(8):
        watch = Stopwatch(setting)
        for step in range(setting.num_steps + 1):
            left @ right
            watch(step + 1)
        taken.append(watch.seconds / setting.num_steps)
    return 2 * size**3 / min(taken) * dist.get_world_size()


def flops_per_token(plan: SearchPlan, num_parameters: int) -> float:
    """Of forward and backward pass."""
    config = plan.proxy.config
    return 6 * num_parameters + 12 * config.num_hidden_layers * config.hidden_size * plan.proxy.training.sequence_length


def paired(plan: SearchPlan, start: Start, flat: Path, setting: Setting, *, scores: bool = True) -> np.ndarray:
    """Seconds of ours, by hand, scored where `scores`, and ours compiled where that is asked for: one row a round."""
    contestants = [lambda: ours(plan, setting), lambda: by_hand(plan, setting, flat)]
    if scores:
        contestants.append(lambda: scored(plan, setting, start))
    if setting.compile:
        training = plan.proxy.training.model_copy(update={"compile": True})
        compiled = replace(plan, proxy=replace(plan.proxy, training=training))
        contestants.append(lambda: ours(compiled, setting))
    taken = np.zeros((setting.rounds, len(contestants)))
    for number in range(setting.rounds):
        order = np.roll(range(len(contestants)), number)
        for which in order[:: 1 if number % 2 else -1]:  # each after each other: they leave memory in different states
            taken[number, which] = contestants[which]()
    return taken


def measure(plan: SearchPlan, start: Start, flat: Path, setting: Setting, rank: int, world_size: int, rendezvous: str) -> None:
    """A row of the table, by the first rank."""
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        taken, peak = paired(plan, start, flat, setting), peak_of(plan, setting)
        if rank == 0:
            say(plan, setting, taken, world_size, peak)


@contextmanager
def prepared(setting: Setting) -> Iterator[tuple[SearchPlan, Start, Path]]:
    """The plan, what its search starts from, and its tokens in one file, in a folder that goes again."""
    with tempfile.TemporaryDirectory() as folder:
        catalog, flat = make_catalog(Path(folder), NUM_SOURCES), Path(folder) / "tokens.bin"
        catalog.save(catalog.root / "catalog.parquet")  # ranks read it there
        write_flat(catalog, flat)
        plan = plan_of(catalog, setting)
        yield plan, counted_start(plan), flat


def say(plan: SearchPlan, setting: Setting, taken: np.ndarray, world_size: int, peak: float) -> None:
    tokens = plan.proxy.training.tokens_per_step * setting.num_steps
    model = plan.proxy.build_model(seed=0)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    ours_s, peer_s = np.median(taken[:, :2], axis=0)
    low, ratio, high = np.percentile(taken[:, 1] / taken[:, 0], [25, 50, 75])
    scored_ratio, *compiled_ratio = np.median(taken[:, 2:] / taken[:, :1], axis=0)
    per_token = flops_per_token(plan, num_parameters)
    mfu_ours, mfu_peer = (per_token * tokens / seconds / peak for seconds in (ours_s, peer_s))
    print(
        f"| {num_parameters / 1e6:.1f} M, {plan.proxy.training.global_batch} x {plan.proxy.training.sequence_length} "
        f"| {setting.precision} | {world_size} | {setting.stage} | {tokens / ours_s:,.0f} | {tokens / peer_s:,.0f} "
        f"| {ratio:.3f} ({low:.3f} to {high:.3f}) | {scored_ratio:.3f} | {mfu_ours:.1%} / {mfu_peer:.1%} "
        f"| {''.join(f'{share:.3f}' for share in compiled_ratio)} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="0.5M")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16" if torch.cuda.is_available() else "fp32")
    parser.add_argument("--steps", type=int, default=16, help="of each of the three in a round; a search scores every 16th")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak-tflops", type=float, help="of one device, for MFU; measured when not given")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time of this process's threads, on a machine that others use as well"
    )
    parser.add_argument("--compile", action="store_true", help="time ours with training.compile too")
    given = parser.parse_args()
    print(
        "| proxy, batch | precision | ranks | ZeRO | tokens/s | by hand | ours / by hand | scored / ours, time | MFU, ours / by hand "
        "| compiled / ours, time |"
    )
    print("|---" * 10 + "|")
    for num_ranks in given.ranks:
        for stage in given.stages:
            setting = Setting(
                given.size, stage, given.precision, given.steps, given.rounds, given.peak_tflops, given.cpu_time, given.compile
            )
            with prepared(setting) as (plan, start, flat):
                launch_ranks(measure, plan, start, flat, setting, num_ranks=num_ranks)


if __name__ == "__main__":
    main()
