"""Run by test_engine.py in processes of its own: one training step of several engines after each other, results as JSON."""

from __future__ import annotations

import gc
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.recipe.training import TrainingSection
from train.proxy import loss_model
from train.proxy.engine import ProxyEngine, process_group
from train.proxy.launch import launch_ranks
from train.proxy.losses import ModelInputs
from train.scores.hypergradient import HypergradientProbe
from train.scores.parameter_shares import Spread

GLOBAL_BATCH, LENGTH, VOCABULARY, LEARNING_RATE = 12, 10, 40, 1e-2
TRAINING = TrainingSection(token_budget=10**6, global_batch=GLOBAL_BATCH, sequence_length=LENGTH, learning_rate=LEARNING_RATE)


_OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
# Raw configurations by name, for a case to be hashable.
RAW: dict[str, dict[str, Any]] = {
    "": {},
    "small_buckets": {"zero_optimization": {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000, "overlap_comm": True}},
    "offloaded": {"zero_optimization": _OFFLOADED, "data_types": {"grad_accum_dtype": "fp32"}},
    "all_offloaded": {
        "zero_optimization": {
            **_OFFLOADED,
            "offload_param": {"device": "cpu"},
            "stage3_prefetch_bucket_size": 100,
            "stage3_param_persistence_threshold": 0,
            "sub_group_size": 500,
        }
    },
    "in_node_groups": {"zero_optimization": {"zero_hpz_partition_size": 2}},
    "said_no": {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
}


def make_model(*, tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, labels and loss weights of a global batch."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:], torch.rand(GLOBAL_BATCH, generator=generator) / (GLOBAL_BATCH * LENGTH)


@dataclass(frozen=True)
class Case:
    """How one engine is made and trained."""

    stage: int
    precision: str = "fp32"
    scope: str = "all"
    micro_batch: int = 6
    scored: bool = True
    tied: bool = False
    num_pieces: int = 1
    recomputed: bool = False
    persistent: bool = True
    raw: str = ""

    def engine(self) -> ProxyEngine:
        training = TRAINING.model_copy(update={"precision": self.precision, "activation_checkpointing": self.recomputed})
        deepspeed = DeepspeedSection(zero_stage=self.stage, config=RAW[self.raw])
        # Logits that are large in earnest would take a minute.
        largest = -(-4 * self.micro_batch * LENGTH * VOCABULARY // self.num_pieces)
        with mock.patch.object(loss_model, "LARGEST_LOGITS_BYTES", largest):
            engine = ProxyEngine(make_model(tied=self.tied), training=training, deepspeed=deepspeed, micro_batch=self.micro_batch)
        for parameter in engine.module.parameters():
            if not self.persistent:  # ZeRO-3 keeps small ones whole
                parameter.ds_persist = False
        return engine


def work(cases: list[dict[str, Any]], output: str, rank: int, world_size: int, rendezvous: str) -> None:
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        results = [train_and_close(Case(**case)) for case in cases]
        if rank == 0:
            Path(output).write_text(json.dumps(results))


def train_and_close(case: Case) -> dict[str, Any]:
    """What a step gives, then the engines and bytes of tensors that are alive without the engine, the most of any rank.

    Its model is still held, as by the probe of a search.
    """
    engine = case.engine()
    model = engine.module
    result = train_one_step(engine, case)
    engine.close()
    del engine
    gc.collect()
    assert torch.nn.functional.linear is torch._C._nn.linear  # ZeRO-3 puts its own in its place
    most = torch.tensor(alive())
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    del model
    return {**result, "alive": most.tolist()}


def alive() -> tuple[int, int]:
    """DeepSpeed engines in this process that hold anything, and bytes of its tensors."""

    objects = gc.get_objects()
    storages = [thing.untyped_storage() for thing in objects if issubclass(type(thing), torch.Tensor)]
    num_bytes = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    engines = [thing for thing in objects if type(thing).__name__ == "DeepSpeedEngine" and vars(thing)]
    return len(engines), num_bytes


def flat(tensors: list[torch.Tensor]) -> list[float]:
    return [value for tensor in tensors for value in tensor.flatten().tolist()]


def train_one_step(engine: ProxyEngine, case: Case) -> dict[str, Any]:
    assert engine.second_moments(list(engine.module.parameters())) is None
    spread = Spread(engine.rank, engine.world_size, sharded=engine.shards_gradients)
    probe = HypergradientProbe(engine.module, scope=case.scope, spread=spread)
    share = GLOBAL_BATCH // engine.world_size
    mine = slice(engine.rank * share, (engine.rank + 1) * share)
    target_inputs, target_labels, _ = (part[mine] for part in make_batch(1))
    inputs, labels, factors = (part[mine] for part in make_batch(2))
    if case.scored:
        losses = (engine.bare_sequence_losses(ModelInputs(target_inputs), target_labels).sum() / GLOBAL_BATCH for _ in range(1))
        probe.target_gradient(losses)
    scores = torch.zeros(GLOBAL_BATCH)
    size = case.micro_batch
    for start in range(0, share, size):
        part = slice(start, start + size)

        def forward_and_backward(part: slice = part) -> None:
            engine.backward((engine.sequence_losses(ModelInputs(inputs[part]), labels[part]) * factors[part]).sum())

        if case.scored:
            with probe.scoring((size, LENGTH)) as alignments:
                forward_and_backward()
                scores[mine][part] = alignments() / (factors[part] * engine.loss_scale)
        else:
            forward_and_backward()
        engine.step(LEARNING_RATE, last_micro_batch=start + size == share)
    return {"scores": engine.sum_over_ranks(scores).tolist(), **state_of(engine)}


def whole_moments(engine: ProxyEngine) -> list[torch.Tensor]:
    """Second moments of all parameters, flat, put together from what the ranks hold."""
    parameters = list(engine.module.parameters())
    held = engine.second_moments(parameters)
    assert held is not None
    wholes = []
    for parameter, (first, square) in zip(parameters, held, strict=True):
        assert square.dtype == torch.float32 or not len(square)
        whole = torch.zeros(math.prod(getattr(parameter, "ds_shape", parameter.shape)))
        whole[first : first + len(square)] = square
        wholes.append(engine.sum_over_ranks(whole) if engine.shards_gradients else whole)
    return wholes


def state_of(engine: ProxyEngine) -> dict[str, list[float]]:
    """What a step has moved: the model, by its logits, and the optimiser's second moments."""
    moments = whole_moments(engine)
    engine.module.eval()
    with torch.no_grad():
        logits = engine.module(input_ids=make_batch(3)[0][:2]).logits
    return {"logits": logits.flatten().tolist(), "moments": flat(moments)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    launch_ranks(work, given["cases"], given["output"], num_ranks=given["ranks"])
