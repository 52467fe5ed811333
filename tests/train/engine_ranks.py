"""Run by test_engine.py in processes of its own: one training step on several ranks under a ZeRO stage, results as JSON."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.recipe_proxy import DeepspeedSection
from fastmix_data.recipe_search import SearchSection
from train.engine import ProxyEngine, process_group
from train.hypergradient import HypergradientProbe
from train.launch import launch_ranks
from train.losses import sequence_losses

GLOBAL_BATCH, LENGTH, VOCABULARY, LEARNING_RATE = 12, 10, 40, 1e-2
SEARCH = SearchSection(token_budget=10**6, global_batch=GLOBAL_BATCH, sequence_length=LENGTH, learning_rate=LEARNING_RATE)


def make_model() -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, labels and loss weights of a global batch."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:], torch.rand(GLOBAL_BATCH, generator=generator) / (GLOBAL_BATCH * LENGTH)


def make_engine(options: dict[str, Any]) -> ProxyEngine:
    deepspeed = DeepspeedSection(zero_stage=options["stage"], precision=options["precision"])
    return ProxyEngine(make_model(), search=SEARCH, deepspeed=deepspeed, micro_batch=options["micro_batch"])


def work(options: dict[str, Any], rank: int, world_size: int, rendezvous: str) -> None:
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        result = {"train": lambda: train_one_step(make_engine(options), options), "close": lambda: close_engines(options)}
        written = result[options["task"]]()
        if rank == 0:
            Path(options["output"]).write_text(json.dumps(written))


def close_engines(options: dict[str, Any]) -> dict[str, list[int]]:
    """Engines and bytes of tensors that are alive after each of several proxies at every ZeRO stage, the most of any rank.

    The model of each is still held while it is closed, as by the probe of a search.
    """
    found = []
    for stage, precision in [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (3, "bf16"), (3, "fp32")]:
        engine = make_engine({**options, "stage": stage, "precision": precision})
        model = engine.module
        train_one_step(engine, options)
        engine.close()
        del engine
        gc.collect()
        found.append(alive())
        del model
    most = torch.tensor(found)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return {"engines": most[:, 0].tolist(), "bytes": most[:, 1].tolist()}


def alive() -> tuple[int, int]:
    """DeepSpeed engines in this process that hold anything, and bytes of its tensors."""

    objects = gc.get_objects()
    storages = [thing.untyped_storage() for thing in objects if issubclass(type(thing), torch.Tensor)]
    num_bytes = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    engines = [thing for thing in objects if type(thing).__name__ == "DeepSpeedEngine" and vars(thing)]
    return len(engines), num_bytes


def flat(tensors: list[torch.Tensor]) -> list[float]:
    return [value for tensor in tensors for value in tensor.flatten().tolist()]


def train_one_step(engine: ProxyEngine, options: dict[str, Any]) -> dict[str, Any]:
    assert engine.second_moments(list(engine.module.parameters())) is None
    probe = HypergradientProbe(engine.module, scope=options["scope"])
    share = GLOBAL_BATCH // engine.world_size
    mine = slice(engine.rank * share, (engine.rank + 1) * share)
    target_inputs, target_labels, _ = (part[mine] for part in make_batch(1))
    inputs, labels, factors = (part[mine] for part in make_batch(2))
    if options["scored"]:
        losses = (
            sequence_losses(engine.module(input_ids=target_inputs).logits, target_labels).sum() / GLOBAL_BATCH for _ in range(1)
        )
        for gradient in probe.target_gradient(losses):
            engine.sum_over_ranks(gradient)
    scores = torch.zeros(GLOBAL_BATCH)
    size = options["micro_batch"]
    for start in range(0, share, size):
        part = slice(start, start + size)

        def forward_and_backward(part: slice = part) -> None:
            engine.backward((sequence_losses(engine.forward(inputs[part]), labels[part]) * factors[part]).sum())

        if options["scored"]:
            with probe.scoring((size, LENGTH)) as alignments:
                forward_and_backward()
                scores[mine][part] = alignments() / (factors[part] * engine.loss_scale)
        else:
            forward_and_backward()
        engine.step(LEARNING_RATE, last_micro_batch=start + size == share)
    moments = engine.second_moments(list(engine.module.parameters()))
    assert moments is not None
    engine.module.eval()
    with torch.no_grad():
        logits = engine.module(input_ids=make_batch(3)[0][:2]).logits
    return {"scores": engine.sum_over_ranks(scores).tolist(), "logits": logits.flatten().tolist(), "moments": flat(moments)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    launch_ranks(work, given, num_ranks=given["ranks"])
