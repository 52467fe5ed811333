"""Shares of the target gradient on several ranks against the whole one on a single rank, and what ranks hold of it."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from train.checkpoints.tensor_files import SavedTensors, write_runs
from train.proxy.engine import process_group
from train.proxy.launch import launch_ranks
from train.proxy.losses import sequence_losses
from train.scores import parameter_shares, target_gradient
from train.scores.hypergradient import HypergradientProbe
from train.scores.parameter_shares import ParameterShares, Spread

BATCH, LENGTH, VOCABULARY, MEMORY = 6, 5, 67, 0.5
Setting = tuple[str, str]
SETTINGS: list[Setting] = [
    *(("llama", scope) for scope in ("all", "last_block", "head")),
    *((kind, "all") for kind in ("tied", "unused", "lora")),
]


def make_model(kind: str) -> Any:
    """A small model, most of whose parameters have numbers of elements that 3 ranks cannot share evenly."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 28}
    config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, tie_word_embeddings=kind == "tied", **sizes)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.config.use_cache = False
    if kind == "unused":  # the last of the last block's, which is the first that would be sent
        model.model.layers[-1].never_called = nn.Linear(7, 9)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    return model


def losses_of(model: Any, seed: int, mine: slice) -> Tensor:
    """Of these sequences of a batch, shape (B,)."""
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(seed))[mine]
    return sequence_losses(model(input_ids=tokens[:, :-1]).logits, tokens[:, 1:])


def remembered_scores(probe: HypergradientProbe, model: Any, mine: slice, held: list[tuple[int, Tensor]]) -> Tensor:
    """Of this part of a batch, against the mean of two target gradients of two passes each, in the metric of second moments."""
    for seed in (1, 2):
        probe.target_gradient(losses_of(model, seed, slice(n, n + 1)).sum() for n in range(mine.start, mine.stop, 1))
        probe.remember()
    probe.precondition(held)
    with probe.scoring((mine.stop - mine.start, LENGTH)) as alignments:
        probe.backward(losses_of(model, 3, mine).sum())
        found_B = alignments()
    probe.release()
    return found_B


def tensor_bytes() -> int:
    """Of all tensors that are alive in this process."""
    gc.collect()
    storages = [thing.untyped_storage() for thing in gc.get_objects() if isinstance(thing, Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def laid_end_to_end(moments: list[Tensor], rank: int, num_ranks: int) -> Iterator[tuple[int, Tensor]]:
    """What a rank holds where all parameters are laid end to end and cut, as ZeRO-2 does."""
    each, start = -(-sum(moment.numel() for moment in moments) // num_ranks), 0
    for moment in moments:
        first, last = (min(max(0, edge - start), moment.numel()) for edge in (rank * each, (rank + 1) * each))
        yield first, moment.flatten()[first:last]
        start += moment.numel()


def compare(setting: Setting, *, rank: int, num_ranks: int) -> dict[str, float]:
    """Scores and state of a probe that shards beside one that this rank has for itself."""
    kind, scope = setting
    model, mine = make_model(kind), slice(rank * BATCH // num_ranks, (rank + 1) * BATCH // num_ranks)

    def probe(spread: Spread) -> HypergradientProbe:
        return HypergradientProbe(model, scope=scope, memory=MEMORY, spread=spread)  # type: ignore[arg-type]

    alone, sharded = probe(Spread()), probe(Spread(rank, num_ranks, sharded=True))
    moments = moments_of(alone)
    expected_B = remembered_scores(alone, model, slice(0, BATCH), [(0, moment.flatten()) for moment in moments])
    found_B = remembered_scores(sharded, model, mine, list(laid_end_to_end(moments, rank, num_ranks)))

    parts: list[Any] = [None] * num_ranks
    dist.all_gather_object(parts, sharded.tensors())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(num_ranks)]
        for path, part in zip(files, parts, strict=True):
            write_runs(path, part["shares"])
        sums, own = dict(SavedTensors(files)), alone.tensors()
    assert [part["weight"] for part in parts] == [1.5] * num_ranks and sums.keys() == own["shares"].keys()
    resumed = probe(Spread(rank, num_ranks, sharded=True))
    resumed.load_tensors({"weight": 1.5, "sums": sums})
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(*(p.tensors()["shares"].values() for p in (resumed, sharded)), strict=True)
    )
    return {
        "scores": float((found_B - expected_B[mine]).abs().max() / expected_B.abs().max()),
        "state": max(float((sums[name] - whole).abs().max()) for name, (_, whole) in own["shares"].items()),
    }


def moments_of(probe: HypergradientProbe) -> list[Tensor]:
    """Made up, the same on every rank."""
    return [torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())) for p in probe.parameters]


def copies_kept(memory: float, *, rank: int, num_ranks: int) -> float:
    """Bytes of tensors that scored steps leave behind, over those of all parameters."""
    model, mine = make_model("llama"), slice(2 * rank, 2 * rank + 2)
    probe = HypergradientProbe(model, scope="all", memory=memory, spread=Spread(rank, num_ranks, sharded=True))
    held = list(laid_end_to_end(moments_of(probe), rank, num_ranks))
    before = tensor_bytes()
    remembered_scores(probe, model, mine, held)
    return (tensor_bytes() - before) / (4 * sum(parameter.numel() for parameter in probe.parameters))


def sum_in_disorder(*, rank: int, num_ranks: int) -> float:
    """The largest error of a sum to which ranks hand over in orders of their own, some leaving parameters out, in tiny buckets."""
    parameter_shares._BUCKET_ELEMENTS = 7
    parameters = [nn.Parameter(torch.zeros(size)) for size in (1, 2, 5, 40, 3, 64)]
    shares = ParameterShares(parameters, Spread(rank, num_ranks, sharded=True))
    given = [
        [torch.randn(len(p), generator=torch.Generator().manual_seed(10 * r + n)) for n, p in enumerate(parameters)]
        for r in range(3)
    ]
    left_out = {(0, 1), (2, 1), (1, 5), (0, 2), (1, 2), (2, 2)}
    total = shares.zeros()
    for _ in range(2):  # as many passes
        summing = shares.summing(total)
        for n in torch.randperm(len(parameters), generator=torch.Generator().manual_seed(rank)).tolist():
            if (rank, n) not in left_out:
                summing.add(n, given[rank][n])
        summing.finish()
    errors = []
    for n, found in enumerate(shares.whole(total, range(len(parameters)))):
        expected = sum((2 * given[r][n] for r in range(num_ranks) if (r, n) not in left_out), torch.zeros(len(found)))
        errors.append(float((found - expected).abs().max()))
    return max(errors)


def work(output: str, rank: int, world_size: int, rendezvous: str) -> None:
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        target_gradient._SMALL = 500  # so that the matrices are looked up one by one, the vectors at once
        found = {"/".join(setting): compare(setting, rank=rank, num_ranks=world_size) for setting in SETTINGS}
        found["kept"] = {str(memory): copies_kept(memory, rank=rank, num_ranks=world_size) for memory in (0.0, MEMORY)}
        found["disorder"] = {"error": sum_in_disorder(rank=rank, num_ranks=world_size)}
        Path(f"{output}.{rank}").write_text(json.dumps(found))


def test_shares_on_ranks_score_as_the_whole_does_and_take_their_part_of_its_memory(tmp_path: Path) -> None:
    num_ranks = 3
    launch_ranks(work, str(tmp_path / "found"), num_ranks=num_ranks)
    for rank in range(num_ranks):
        found = json.loads(Path(f"{tmp_path / 'found'}.{rank}").read_text())
        assert found.pop("disorder")["error"] < 1e-6
        kept = found.pop("kept")
        # A third, and less than an element more for each parameter; nothing without memory.
        assert kept["0.0"] == 0 and 0 < kept[str(MEMORY)] < 1.05 / num_ranks
        assert len(found) == len(SETTINGS)
        for name, result in found.items():
            assert result["scores"] < 1e-5 and result["state"] < 1e-5, (name, result)


def mixed_languages(share: float, number: int, *, seed: int) -> Tensor:
    """Sequences of a Markov chain between two, shape (number, 33)."""
    chains = torch.randn(2, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).mul(3).softmax(dim=-1)
    chain, generator = share * chains[0] + (1 - share) * chains[1], torch.Generator().manual_seed(seed)
    tokens = [torch.randint(0, 64, (number,), generator=generator)]
    for _ in range(32):
        tokens.append(torch.multinomial(chain[tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, dim=1)


def test_bf16_scores_sources_within_a_hundredth_of_the_spread_that_float32_finds() -> None:
    """On the weights that training left, whose moments make the metric: of bf16's error half is the rounding of the weights themselves."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=88
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    num_sources, each = 6, 4

    def batch(seed: int) -> Tensor:
        return torch.cat([mixed_languages(k / (num_sources - 1), each, seed=seed + k) for k in range(num_sources)])

    def losses_B(model: Any, tokens: Tensor) -> Tensor:
        return sequence_losses(model(input_ids=tokens[:, :-1]).logits, tokens[:, 1:])

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(20):
        optimizer.zero_grad()
        (losses_B(model, batch(100 * step)).mean() / 32).backward()
        optimizer.step()
    moments = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
    target, scored = mixed_languages(0.2, 16, seed=7), batch(5000)

    def scores_K() -> Tensor:
        probe = HypergradientProbe(model, scope="all")
        probe.target_gradient(losses_B(model, tokens).mean() for tokens in target.split(8))
        assert all(v.dtype == torch.float32 for v in probe.whole_target())
        probe.precondition((0, moment.flatten()) for moment in moments)
        with probe.scoring((len(scored), 32)) as alignments:
            probe.backward(losses_B(model, scored).sum())
        return alignments().double().view(num_sources, each).mean(dim=1)

    expected_K = scores_K()
    model.bfloat16()
    error = (scores_K() - expected_K).pow(2).mean().sqrt() / expected_K.std()
    assert error < 0.01
