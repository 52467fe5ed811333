"""Several ranks and every ZeRO stage against plain PyTorch in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from train.losses import sequence_losses

SCRIPT = Path(__file__).with_name("engine_ranks.py")
sys.path.insert(0, str(SCRIPT.parent))
import engine_ranks as setting  # noqa: E402


def run(tmp_path: Path, **options: Any) -> dict[str, torch.Tensor]:
    output = tmp_path / "result.json"
    defaults = {"task": "train", "precision": "fp32", "scored": True, "scope": "all", "micro_batch": 6}
    options = {**defaults, **options, "output": str(output)}
    finished = subprocess.run([sys.executable, SCRIPT, json.dumps(options)], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return {name: torch.tensor(values) for name, values in json.loads(output.read_text()).items()}


@cache
def oracle(scope: str) -> dict[str, torch.Tensor]:
    """Scores by separate backward passes, then one AdamW step on the whole batch with clipping: no engine, no hooks."""
    model = setting.make_model()
    parameters = list(model.parameters()) if scope == "all" else list(model.get_output_embeddings().parameters())

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])

    target_inputs, target_labels, _ = setting.make_batch(1)
    inputs, labels, factors = setting.make_batch(2)
    v = gradient(sequence_losses(model(input_ids=target_inputs).logits, target_labels).mean())
    losses = sequence_losses(model(input_ids=inputs).logits, labels)
    scores = torch.stack([v @ gradient(loss) for loss in losses])
    search = setting.SEARCH
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": search.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=setting.LEARNING_RATE, betas=search.adam_betas)
    (losses * factors).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), search.gradient_clipping)
    optimizer.step()
    correction = 1 - search.adam_betas[1]
    moments = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() / correction for p in model.parameters()])
    return {
        "scores": scores,
        "logits": model(input_ids=setting.make_batch(3)[0][:2]).logits.detach().flatten(),
        "moments": moments,
    }


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, tolerance: float = 1e-4) -> None:
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_scores_and_step_equal_plain_pytorch(tmp_path: Path, ranks: int, stage: int) -> None:
    found = run(tmp_path, ranks=ranks, stage=stage)
    assert_close(found["scores"], oracle("all")["scores"])
    assert_close(found["logits"], oracle("all")["logits"])
    assert_close(found["moments"], oracle("all")["moments"])


def test_head_scores_equal_plain_pytorch_on_two_ranks(tmp_path: Path) -> None:
    assert_close(run(tmp_path, ranks=2, stage=2, scope="head")["scores"], oracle("head")["scores"])


@pytest.mark.parametrize("stage", [1, 3])
def test_scoring_does_not_change_what_is_trained(tmp_path: Path, stage: int) -> None:
    scored, plain = (run(tmp_path, ranks=2, stage=stage, scored=scored) for scored in (True, False))
    assert torch.equal(scored["logits"], plain["logits"])


@pytest.mark.parametrize("micro_batch", [1, 2, 12])
def test_any_micro_batch_gives_the_same_step(tmp_path: Path, micro_batch: int) -> None:
    """The reference code's loss normalised by the weights in a micro-batch: at size 1 the mixture had no effect."""
    found = run(tmp_path, ranks=1, stage=1, micro_batch=micro_batch)
    assert_close(found["logits"], oracle("all")["logits"])
    assert_close(found["scores"], oracle("all")["scores"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_closed_engine_leaves_nothing_behind_at_any_stage(tmp_path: Path, ranks: int) -> None:
    found = run(tmp_path, task="close", ranks=ranks)
    assert not any(found["engines"])
    one_copy = 4 * sum(parameter.numel() for parameter in setting.make_model().parameters())
    assert found["bytes"].max() < one_copy / 10
