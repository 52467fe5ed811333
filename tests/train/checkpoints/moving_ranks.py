"""Run by test_moving_ranks.py in processes of its own: proxies that are trained, saved and gone on with, results as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from engine_ranks import RAW, TRAINING, VOCABULARY, make_batch, state_of
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.recipe.proxy import DeepspeedSection
from train.checkpoints.checkpoints import CheckpointPlan, Checkpoints
from train.proxy.engine import ProxyEngine, process_group
from train.proxy.launch import launch_ranks
from train.proxy.losses import ModelInputs

SAVED_AT, END = 2, 4


@dataclass(frozen=True)
class Part:
    """Training of a proxy up to its end, from the start or from what `begins_from` saved.

    Attributes:
        name: of the folder that it saves into on the way; none of one that goes on.
        begins_from: name of the part that saved.
    """

    stage: int
    precision: str = "fp32"
    raw: str = ""
    dropout: float = 0.0
    name: str = ""
    begins_from: str = ""


def make_model(dropout: float) -> Any:
    """A model with tied embeddings and 3 * 7 * ... elements, which no number of ranks divides evenly."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 21}
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY + 3, tie_word_embeddings=True, attention_dropout=dropout, **sizes
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")


def trained(part: Part, folder: Path) -> dict[str, Any]:
    """Parameters and second moments at the end of a part, and where it began; all ranks call it."""
    training = TRAINING.model_copy(update={"precision": part.precision})
    engine = ProxyEngine(
        make_model(part.dropout),
        training=training,
        deepspeed=DeepspeedSection(zero_stage=part.stage, config=RAW[part.raw]),
        micro_batch=3,
    )
    began = 0
    with Checkpoints(CheckpointPlan(folder / (part.begins_from or part.name), {}), engine) as checkpoints:
        if part.begins_from:
            saved = checkpoints.resume()
            assert saved is not None
            began = saved.step
            mine = {name: saved.tensors[name].tolist() for name in ("own/0", "own/1") if name in saved.tensors}
            assert mine == saved.state["own"]
        for step in range(began, END):
            _step(engine, step)
            if part.name and step + 1 == SAVED_AT:
                # A rank adds runs of its own, as of the remembered target gradient.
                own = {f"own/{engine.rank}": (0, torch.arange(3.0) + engine.rank)}
                of_all = {f"own/{rank}": (torch.arange(3.0) + rank).tolist() for rank in range(engine.world_size)}
                checkpoints.save(step + 1, lambda own=own, of_all=of_all: ({"own": of_all}, own))
    found = {**state_of(engine), "began": began}
    engine.close()
    return found


def _step(engine: ProxyEngine, step: int) -> None:
    inputs, labels, factors = make_batch(100 + step)
    share = len(inputs) // engine.world_size
    for number in range(engine.num_micro_batches):
        size = share // engine.num_micro_batches
        first = engine.rank * share + number * size
        part = slice(first, first + size)
        losses = engine.sequence_losses(ModelInputs(inputs[part]), labels[part])
        engine.backward((losses * factors[part]).sum())
        engine.step(1e-2 / (step + 1), last_micro_batch=number == engine.num_micro_batches - 1)


def work(parts: list[dict[str, Any]], folder: str, rank: int, world_size: int, rendezvous: str) -> None:
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        results = [trained(Part(**part), Path(folder)) for part in parts]
        if rank == 0:
            (Path(folder) / "results.json").write_text(json.dumps(results))


def start_ranks(parts: list[Part], folder: Path) -> list[str]:
    """The command that does parts on two ranks."""
    return [sys.executable, __file__, json.dumps([asdict(part) for part in parts]), str(folder)]


if __name__ == "__main__":
    launch_ranks(work, json.loads(sys.argv[1]), sys.argv[2], num_ranks=2)
