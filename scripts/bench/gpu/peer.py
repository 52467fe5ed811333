"""Our plain training loop beside transformers under DeepSpeed as their documentation has it: the same model, batch and optimiser."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead import PROXIES, SETTINGS
from row import ON_GPU, mfu_of, say
from search_overhead import VOCABULARY, make_catalog, make_plan, paired_times

from train.proxy.engine import process_group
from train.search.search import build_run
from train.search.start import counted_start

STEPS, ROUNDS = (8, 4) if ON_GPU else (2, 1)


def main() -> None:
    size = list(PROXIES)[-1]
    batch, length, _ = SETTINGS[size]
    with tempfile.TemporaryDirectory() as folder, process_group(rank=0, world_size=1):
        plan = make_plan(
            make_catalog(Path(folder), 8),
            proxy={"model_type": "llama", **PROXIES[size]},
            training={"global_batch": batch, "sequence_length": length},
            search={"initial_weights": "uniform"},
        )
        run, engine, _ = build_run(plan, 1, start=counted_start(plan))  # imports DeepSpeed the way that keeps it quiet
        import deepspeed

        model: Any = plan.proxy.build_model(seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=ON_GPU)
        config = {
            "train_micro_batch_size_per_gpu": batch,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": ON_GPU},
            "steps_per_print": 10**12,
        }
        peer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)

        def peer_step() -> None:
            tokens = torch.randint(0, VOCABULARY, (batch, length), device=peer.device)
            peer.backward(peer(input_ids=tokens, labels=tokens).loss)
            peer.step()

        pairs = np.array(list(paired_times(run.plain_step, peer_step, times=STEPS, rounds=ROUNDS)))
        ours, theirs = plan.proxy.training.tokens_per_step * STEPS / np.median(pairs, axis=0)
        ratio = float(np.median(pairs[:, 1] / pairs[:, 0]))
        say(
            "plain training: tokens/s of ours / of transformers with DeepSpeed",
            f"llama of {engine.num_parameters / 1e6:.0f} M, {batch} x {length}, ZeRO 1",
            f"{ratio:.3f}; {ours:,.0f} and {theirs:,.0f}",
            mfu=mfu_of(plan.main, float(ours)),
        )


if __name__ == "__main__":
    main()
