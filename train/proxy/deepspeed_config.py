"""DeepSpeed's configuration of a proxy, from the recipe: what the recipe sets, over what its raw configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from fastmix_data.errors import RecipeError
from fastmix_data.messages import first_line
from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.recipe.training import TrainingSection

_REDUCED_AT_ONCE = 500_000_000  # DeepSpeed's default


def computes_in_bf16(training: TrainingSection) -> bool:
    """Whether parameters are bf16 in passes; the optimiser moves ones in float32 whatever the precision."""
    return training.precision == "bf16" or (
        training.precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def stage_taken(training: TrainingSection, deepspeed: DeepspeedSection) -> int:
    """The ZeRO stage a proxy is trained under."""
    # bf16 needs master weights in float32, and ZeRO-1 keeps them: the same arithmetic, the optimiser spread over ranks. What
    # DeepSpeed takes at stage 0 steps once with no gradient when it is built: weights decay and Adam miscounts its steps.
    return max(deepspeed.zero_stage, 1) if computes_in_bf16(training) else deepspeed.zero_stage


def reduced_at_once(deepspeed: DeepspeedSection, *, num_trained: int) -> int:
    """Gradients that DeepSpeed has room for on their way to other ranks."""
    asked = deepspeed.config.get("zero_optimization", {}).get("reduce_bucket_size")
    # Room is laid out whatever the model's size, by default 2 GB of float32 beside a proxy of 40 MB.
    return int(asked) if asked is not None else min(_REDUCED_AT_ONCE, num_trained)


def engine_config(
    training: TrainingSection, deepspeed: DeepspeedSection, *, micro_batch: int, num_micro_batches: int, num_trained: int
) -> dict[str, Any]:
    """What DeepSpeed is given."""
    config: dict[str, Any] = {
        "zero_optimization": {"reduce_bucket_size": reduced_at_once(deepspeed, num_trained=num_trained)},
        "steps_per_print": 10**12,
        # DeepSpeed's timer, which nobody reads, has the host wait for the GPU before and after every pass.
        "timers": {"throughput": {"enabled": False}},
    }
    ours = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": training.gradient_clipping,
        "zero_optimization": {"stage": stage_taken(training, deepspeed)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # theirs is compiled on the spot; torch's fused AdamW moves what is offloaded
        "bf16": {"enabled": computes_in_bf16(training)},
    }
    return _merged(_merged(config, deepspeed.config), ours)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **under,
        **{
            key: _merged(under[key], value) if isinstance(value, dict) and isinstance(under.get(key), dict) else value
            for key, value in over.items()
        },
    }


def refusal(error: Exception) -> RecipeError:
    """In one line, why DeepSpeed does not take a raw configuration."""
    said = first_line(error)
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False)[0]
        said = f"{'.'.join(map(str, found['loc']))}: {found['msg']}".removeprefix(": ")
    return RecipeError("deepspeed.config", f"DeepSpeed refuses it ({said})", "mend it, or leave it out")
