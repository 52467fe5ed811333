from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.proxy import DeepspeedSection, ProxySection
from fastmix_data.recipe.training import TrainingSection
from train.memory import fitting_batch
from train.memory.fitting_batch import memory_of, with_fitting_batch
from train.memory.live_bytes import LiveBytes
from train.memory.pass_memory import pass_bytes
from train.proxy.engine import ProxyEngine, process_group
from train.proxy.launch import launch_ranks
from train.proxy.losses import ModelInputs
from train.proxy.training import ProxyPlan

LENGTH, VOCABULARY, RANKS = 64, 4096, 2


def _plan(*, stage: int, precision: str, sequence_length: int = LENGTH) -> ProxyPlan:
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 704,
    }
    section = TrainingSection(
        token_budget=10**6, sequence_length=sequence_length, global_batch=4 * RANKS, precision=cast(Any, precision)
    )
    catalog = cast(Any, SimpleNamespace(info=SimpleNamespace(vocab_size=VOCABULARY)))
    return ProxyPlan(catalog, ProxySection(config=config), Path(), section, DeepspeedSection(zero_stage=cast(Any, stage)))


def _highest(plans: list[ProxyPlan], path: Path, rank: int, world_size: int, rendezvous: str) -> None:
    """What tensors of this rank take at most while each plan's proxy trains for two steps, the first of which makes the moments."""
    torch.set_num_threads(1)
    found = []
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        for plan in plans:
            tokens_BT = torch.randint(VOCABULARY, (2, LENGTH))
            with LiveBytes() as live:
                engine = ProxyEngine(plan.build_model(seed=0), training=plan.training, deepspeed=plan.deepspeed, micro_batch=2)
                for number in range(4):
                    engine.backward(engine.sequence_losses(ModelInputs(tokens_BT), tokens_BT).sum())
                    engine.step(1e-4, last_micro_batch=number % 2 == 1)
                found.append(live.peak)
            engine.close()
    if rank == 0:
        path.write_text(" ".join(map(str, found)))


def test_what_is_foreseen_of_two_ranks_memory_is_what_their_tensors_take(tmp_path: Path) -> None:
    plans = [_plan(stage=stage, precision=precision) for stage, precision in ((0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16"))]
    launch_ranks(_highest, plans, tmp_path / "highest", num_ranks=RANKS)
    measured = [int(word) for word in (tmp_path / "highest").read_text().split()]
    foreseen = [memory_of(plan, num_ranks=RANKS, num_sequences=2, is_scored=False).most for plan in plans]
    assert foreseen == pytest.approx(measured, rel=0.1)


def test_a_pass_takes_less_where_blocks_are_computed_once_more() -> None:
    plan = _plan(stage=1, precision="fp32")
    four = pass_bytes(plan, num_sequences=4)
    recomputed = replace(plan, training=plan.training.model_copy(update={"activation_checkpointing": True}))
    assert pass_bytes(recomputed, num_sequences=4) < 0.8 * four


def test_as_many_sequences_as_memory_holds_are_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(stage=2, precision="fp32", sequence_length=4 * LENGTH)

    def fitting(available: int) -> Any:
        monkeypatch.setattr(fitting_batch, "device_memory", lambda: available)
        return with_fitting_batch(plan, num_ranks=RANKS, ranks_on_machine=1).training.micro_batch

    def needed(num_sequences: int) -> int:
        return round(memory_of(plan, num_ranks=RANKS, num_sequences=num_sequences, is_scored=False).most / 0.85)

    assert fitting(10**12) == 4  # all of its share, without a look at the model
    assert [fitting(needed(number) + 10**5) for number in (1, 2, 3, 4)] == [1, 2, 2, 4]  # divisors
    with pytest.raises(RecipeError, match=r"a pass of one sequence needs about .*training\.activation_checkpointing: true"):
        fitting(needed(1) - 10**6)
    stated = replace(plan, training=plan.training.model_copy(update={"micro_batch": 1}))
    assert with_fitting_batch(stated, num_ranks=RANKS, ranks_on_machine=1) is stated
