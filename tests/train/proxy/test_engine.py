"""Several ranks and every ZeRO stage against plain PyTorch in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache

import engine_ranks as setting
import pytest
import torch
from engine_ranks import Case

from fastmix_data.errors import RecipeError
from train.proxy.engine import process_group
from train.proxy.losses import sequence_losses

RAW_CASES = [
    Case(stage=2, raw="small_buckets"),
    *(Case(stage, raw="offloaded") for stage in (1, 2)),
    Case(stage=2, precision="bf16", raw="offloaded"),
    *(Case(stage=3, raw=raw) for raw in ("all_offloaded", "in_node_groups")),
]
CASES: dict[int, list[Case]] = {
    1: [
        *(Case(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")),
        *(Case(stage=1, micro_batch=size) for size in (1, 2, 12)),
        *(Case(stage, num_pieces=3, recomputed=True, persistent=False) for stage in range(4)),
        Case(3, "bf16", num_pieces=3, recomputed=True, persistent=False),
    ],
    2: [
        *(Case(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")),
        *(Case(stage=stage, scored=False) for stage in (1, 3)),
        Case(stage=2, scope="head"),
        *(Case(stage, num_pieces=3, recomputed=True, persistent=False) for stage in (2, 3)),
        *(Case(3, scope=scope, num_pieces=3, recomputed=True, persistent=False) for scope in ("last_block", "head")),
        *RAW_CASES,
    ],
}
STEPS = [(ranks, stage) for ranks in (1, 2) for stage in range(4)]
Results = dict[tuple[int, Case], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Of all cases; one launch for each number of ranks."""
    found: Results = {}
    for ranks, cases in CASES.items():
        output = tmp_path_factory.mktemp("engine") / "result.json"
        given = {"ranks": ranks, "cases": [asdict(case) for case in cases], "output": str(output)}
        finished = subprocess.run(
            [sys.executable, setting.__file__, json.dumps(given)], capture_output=True, text=True, timeout=300
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert (finished.stdout, finished.stderr) == ("", "")  # a user's terminal has no room for DeepSpeed's remarks
        for case, result in zip(cases, json.loads(output.read_text()), strict=True):
            found[ranks, case] = {name: torch.tensor(values) for name, values in result.items()}
    return found


@cache
def oracle(scope: str) -> dict[str, torch.Tensor]:
    """Scores by separate backward passes, then one AdamW step on the whole batch with clipping: no engine, no hooks."""
    model = setting.make_model()
    parts = {"all": [model], "last_block": [model.model.layers[-1], model.model.norm, model.lm_head], "head": [model.lm_head]}
    parameters = [parameter for part in parts[scope] for parameter in part.parameters()]

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])

    target_inputs, target_labels, _ = setting.make_batch(1)
    inputs, labels, factors = setting.make_batch(2)
    v = gradient(sequence_losses(model(input_ids=target_inputs).logits, target_labels).mean())
    losses = sequence_losses(model(input_ids=inputs).logits, labels)
    scores = torch.stack([v @ gradient(loss) for loss in losses])
    search = setting.TRAINING
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


@pytest.mark.parametrize(("ranks", "stage"), STEPS)
def test_scores_and_step_equal_plain_pytorch(results: Results, ranks: int, stage: int) -> None:
    found = results[ranks, Case(stage)]
    for name, expected in oracle("all").items():
        assert_close(found[name], expected)


@pytest.mark.parametrize("case", RAW_CASES, ids=lambda case: f"{case.raw}-{case.stage}-{case.precision}")
def test_what_a_raw_configuration_moves_elsewhere_changes_neither_scores_nor_step(results: Results, case: Case) -> None:
    tolerance = {"fp32": 1e-4, "bf16": 0.05}[case.precision]
    for name, expected in oracle("all").items():
        assert (results[2, case][name] - expected).norm() < tolerance * expected.norm(), name


def test_a_raw_configuration_that_deepspeed_refuses_is_one_line() -> None:
    with process_group(rank=0, world_size=1), pytest.raises(RecipeError) as caught:
        Case(stage=2, raw="said_no").engine()
    expected = "deepspeed.config: DeepSpeed refuses it (Assertion failed, Partial offloading only supported for ZeRO Stage 3.)"
    assert str(caught.value) == f"{expected}; mend it, or leave it out"


@pytest.mark.parametrize(("ranks", "stage"), STEPS)
def test_bf16_scores_and_steps_as_float32_does_to_its_own_accuracy(results: Results, ranks: int, stage: int) -> None:
    """bf16 rounds to 0.4%; a step of 1e-2 on weights of that size is rounded once more."""
    found = results[ranks, Case(stage, "bf16")]
    for name, tolerance in {"scores": 0.02, "moments": 0.02, "logits": 0.05}.items():
        expected = oracle("all")[name]
        assert (found[name] - expected).norm() < tolerance * expected.norm(), name


def test_head_scores_equal_plain_pytorch_on_two_ranks(results: Results) -> None:
    assert_close(results[2, Case(stage=2, scope="head")]["scores"], oracle("head")["scores"])


@pytest.mark.parametrize(("ranks", "stage"), [*((1, stage) for stage in range(4)), (2, 2), (2, 3)])
def test_cut_logits_and_blocks_computed_once_more_score_and_step_alike(results: Results, ranks: int, stage: int) -> None:
    found = results[ranks, Case(stage, num_pieces=3, recomputed=True, persistent=False)]
    for name, expected in oracle("all").items():
        assert_close(found[name], expected)


def test_parts_of_cut_logits_are_added_in_float32_under_bf16(results: Results) -> None:
    found, whole = (
        results[1, Case(3, "bf16", **way)] for way in ({"num_pieces": 3, "recomputed": True, "persistent": False}, {})
    )
    assert (found["moments"] - whole["moments"]).norm() < 0.01 * whole["moments"].norm()


def test_scopes_score_alike_with_cut_logits_under_zero_3_on_two_ranks(results: Results) -> None:
    for scope in ("last_block", "head"):
        assert_close(
            results[2, Case(3, scope=scope, num_pieces=3, recomputed=True, persistent=False)]["scores"], oracle(scope)["scores"]
        )


@pytest.mark.parametrize("stage", [1, 3])
def test_scoring_does_not_change_what_is_trained(results: Results, stage: int) -> None:
    assert torch.equal(results[2, Case(stage)]["logits"], results[2, Case(stage, scored=False)]["logits"])


@pytest.mark.parametrize("micro_batch", [1, 2, 12])
def test_any_micro_batch_gives_the_same_step(results: Results, micro_batch: int) -> None:
    """The reference code's loss normalised by the weights in a micro-batch: at size 1 the mixture had no effect."""
    found = results[1, Case(stage=1, micro_batch=micro_batch)]
    assert_close(found["logits"], oracle("all")["logits"])
    assert_close(found["scores"], oracle("all")["scores"])


def test_a_closed_engine_leaves_nothing_behind(results: Results) -> None:
    one_copy = 4 * sum(parameter.numel() for parameter in setting.make_model().parameters())
    for found in results.values():
        num_engines, num_bytes = found["alive"].tolist()
        assert num_engines == 0 and num_bytes < one_copy / 10
