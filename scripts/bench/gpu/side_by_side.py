"""Small proxies trained side by side, beside one by one on the same device: tokens a second, and whether both are the same proxies."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from planted import SOURCES, VOCABULARY, plan_planted
from row import ON_GPU, peak, reset_peak, say

from train.proxy.engine import process_group
from train.proxy.training import train_on_mixture
from train.side_by_side.training import train_side_by_side
from train.side_by_side.trial import try_side_by_side
from train.target.target import stacked_target_losses, target_losses

NUM_PROXIES, NUM_ALONE = (64, 2) if ON_GPU else (3, 2)
LENGTH, BATCH, STEPS = (256, 4, 300) if ON_GPU else (32, 4, 16)
PROXY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 172,
}
TRAINING = {"token_budget": STEPS * BATCH * LENGTH, "sequence_length": LENGTH, "global_batch": BATCH, "learning_rate": 6e-3}
SEARCH = {"update_interval": 4}  # there is none
# In bf16 two ways to compute attention part by its rounding: nats of a loss of about 4.
TOLERANCE = 0.05 if ON_GPU else 1e-4


def main() -> None:
    device = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
    weights_NK = np.random.default_rng(0).dirichlet(np.ones(len(SOURCES)), NUM_PROXIES)
    measured = {"names": ["blend"], "half": "unseen", "num_sequences": 32}
    alone, seconds_alone = [], 0.0
    with tempfile.TemporaryDirectory() as folder, process_group(rank=0, world_size=1):
        plan = plan_planted(Path(folder) / "run", num_blocks=256, proxy=PROXY, training=TRAINING, search=SEARCH).proxy
        for weights_K in weights_NK[:NUM_ALONE]:
            run = train_on_mixture(plan, weights_K, seed=0)
            alone.append(target_losses(run.engine, plan, **measured)["blend"])
            seconds_alone = run.seconds  # of the last one: the first is when everything is loaded
            num_parameters = run.engine.num_parameters
            run.engine.close()
        trial = try_side_by_side(plan, device=device)
        reset_peak()
        together = train_side_by_side(plan, weights_NK, seeds=[0] * NUM_PROXIES, device=device)
        memory = peak()
        found = [losses["blend"] for losses in stacked_target_losses(together.proxies, plan, **measured)]
    rate, rate_alone = NUM_PROXIES * plan.training.num_tokens / together.seconds, plan.training.num_tokens / seconds_alone
    difference = max(abs(one - other) for one, other in zip(alone, found, strict=False))
    graph = "" if not ON_GPU else f", no CUDA graph ({together.without_graph})" if together.without_graph else ", in a CUDA graph"
    say(
        "proxies side by side / one by one, tokens/s of all",
        f"{NUM_PROXIES} llamas of {num_parameters / 1e6:.2f} M, vocabulary {VOCABULARY}, {BATCH} x {LENGTH}, {STEPS} steps",
        f"{rate / rate_alone:.1f}; {rate:,.0f} and {rate_alone:,.0f}{graph}{memory}; {trial.why_not or f'{trial.most_at_once} fit'}; "
        f"losses at most {difference:.1e} apart",
        wanted=f"trained side by side, losses within {TOLERANCE:g}",
        ok=trial.most_at_once > 0 and not together.without_graph and difference < TOLERANCE,
    )


if __name__ == "__main__":
    main()
