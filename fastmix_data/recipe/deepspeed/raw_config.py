"""A raw DeepSpeed configuration in the recipe: what of it is passed on, what the recipe says already, and what scores do not survive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmix_data.messages import nearest

ZERO = "zero_optimization"
_AUTO = "auto"  # in configurations of Hugging Face's trainers: whoever trains fills it in
_OURS = {
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch and training.micro_batch",
    "gradient_clipping": "training.gradient_clipping",
    "bf16": "training.precision",
    "bfloat16": "training.precision",
    "fp16": "training.precision",
    "amp": "training.precision",
    "torch_autocast": "training.precision",
    "optimizer": "training.learning_rate, training.weight_decay and training.adam_betas",
    "scheduler": "training.learning_rate, training.warmup_fraction and training.min_lr_fraction",
    "elasticity": "training.global_batch",
}
_SAME_DATA = "proxies are compared on the same data"
_OWN_CHECKPOINTS = "fastmix writes and reads its checkpoints itself"
_NO_EFFECT = "it has no effect on a model of transformers"
_REMOVED = "DeepSpeed no longer has it"
_REFUSED = {
    "activation_checkpointing": _NO_EFFECT,
    "aio": "it is for states on NVMe, and checkpoints and scores look for them in memory",
    "autotuning": "a search has one configuration",
    "checkpoint": _OWN_CHECKPOINTS,
    "compile": "DeepSpeed would compile the pass that scores are taken from as well",
    "compression_training": _REMOVED,
    "curriculum_learning": _SAME_DATA,
    "data_efficiency": _SAME_DATA,
    "datastates_ckpt": _OWN_CHECKPOINTS,
    "disable_allgather": "ranks would train different models",
    "eigenvalue": _REMOVED,
    "expert_parallel": "scores follow no mixture of experts",
    "gradient_allreduce_op": "losses and scores are scaled for the mean over ranks",
    "hybrid_engine": "it swaps the modules that scores are taken from",
    "managed_gradient_accumulation": "DeepSpeed has to count the passes of a step",
    "nebula": _REMOVED,
    "pipeline": "every rank needs the whole pass for scores",
    "progressive_layer_drop": "scores need the model that is trained",
    "quantize_training": _REMOVED,
    "sequence_parallel_size": "scores need a sequence on one rank",
    "sparse_attention": _REMOVED,
    "sparse_gradients": _REMOVED,
    "tensor_parallel": "scores need a layer's parameters on one rank",
    "weight_quantization": "scores need the weights that are trained",
}
_PASSED = frozenset(
    (
        *("comms_logger", "communication_data_type", "csv_monitor", "data_types", "dump_state", "disable_python_gc"),
        *("flops_profiler", "gradient_predivide_factor", "log_level", "memory_breakdown", "monitor_config", "prescale_gradients"),
        *("steps_per_print", "tensorboard", "timers", "wall_clock_breakdown", "wandb", "comet"),
        *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", ZERO),
    )
)
_QUANTIZED = "scores would be of rounded weights or gradients"
_LEAVES = "ZeRO cannot fetch leaf modules in a pass that does not train, and scores take such passes"
_ZERO_REFUSED = {
    "cpu_offload": "its name is offload_optimizer: {device: cpu} now",
    "cpu_offload_param": "its name is offload_param: {device: cpu} now",
    "cpu_offload_use_pin_memory": "its name is pin_memory of offload_optimizer and offload_param now",
    "elastic_checkpoint": _OWN_CHECKPOINTS,
    "leaf_module": _LEAVES,
    "legacy_stage1": _REMOVED,
    "load_from_fp32_weights": _OWN_CHECKPOINTS,
    "module_granularity_threshold": _LEAVES,
    "pipeline_loading_checkpoint": _OWN_CHECKPOINTS,
    "round_robin_gradients": "second moments come back as those of other parameters",
    "stage3_module_granularity_threshold": _LEAVES,
    "mics_hierarchical_params_gather": "the proxy is not built under MiCS",
    "mics_shard_size": "the proxy is not built under MiCS",
    "save_muon_momentum_buffer_in_memory": "the optimiser is AdamW",
    "stage3_gather_fp16_weights_on_model_save": "its name is stage3_gather_16bit_weights_on_model_save now",
    "zenflow": "the optimiser would not move every parameter at every step",
    "zero_quantized_gradients": _QUANTIZED,
    "zero_quantized_nontrainable_weights": _QUANTIZED,
    "zero_quantized_weights": _QUANTIZED,
}
_ZERO_STAGE3 = (
    *("prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold", "max_live_parameters"),
    *("max_reuse_distance", "gather_16bit_weights_on_model_save", "use_all_reduce_for_fetch_params", "allgather_sequential"),
)
_ZERO_PASSED = frozenset(
    (
        *("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce"),
        *("allgather_partitions", "allgather_bucket_size", "overlap_comm", "compute_grad_norm", "offload_param"),
        *("offload_optimizer", "sub_group_size", "ignore_unused_parameters", "parameter_alignment"),
        *("zero_hpz_partition_size", "memory_efficient_linear", "override_module_apply", "log_trace_cache_warnings"),
        *("enable_sanity_checks", *_ZERO_STAGE3, *(f"stage3_{name}" for name in _ZERO_STAGE3)),
    )
)


def read_config(value: Any, *, base: Path) -> Any:
    """The configuration itself, where its file is named: relative to `base`, JSON as DeepSpeed takes it.

    Raises:
        ValueError: the file cannot be read; `problem; remedy`.
    """
    if not isinstance(value, str):
        return value
    path = base / Path(value).expanduser()
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a file of JSON, or the keys themselves") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it, or give the keys themselves") from error


def checked_config(given: Mapping[str, Any], *, zero_stage: int) -> dict[str, Any]:
    """What of a raw configuration is passed on to DeepSpeed: all of it but what is "auto", off, or says what the recipe says.

    Raises:
        ValueError: a key contradicts the recipe, breaks scores, or is unknown; `problem; remedy`.
    """
    asked = {key: value for key, value in given.items() if not (key in _OURS | _REFUSED and _is_off(key, value))}
    kept: dict[str, Any] = _without_auto(asked)
    for key in kept:
        if key in _OURS:
            raise ValueError(f"{key} is not taken from here; set {_OURS[key]}, and leave it out or write {_AUTO!r}")
    _refuse("", kept, refused=_REFUSED, passed=_PASSED | _OURS.keys())
    zero = kept.pop(ZERO, {})
    if not isinstance(zero, dict):
        raise ValueError(f"{ZERO} is a mapping, not {zero!r}; see DeepSpeed's documentation of its keys")
    stage = zero.pop("stage", zero_stage)
    if stage != zero_stage:
        raise ValueError(f"{ZERO}.stage {stage} is not deepspeed.zero_stage {zero_stage}; write deepspeed.zero_stage: {stage}")
    zero = {key: value for key, value in zero.items() if not (key in _ZERO_REFUSED and _is_off(key, value))}
    _refuse(f"{ZERO}.", zero, refused=_ZERO_REFUSED, passed=_ZERO_PASSED | {"stage"})
    checked = {**kept, ZERO: zero} if zero else kept
    for what in ("optimizer", "param"):
        if _device_of(checked, what) not in ("none", "cpu"):
            raise ValueError(
                f"{ZERO}.offload_{what} is to be on cpu: checkpoints and scores look for states in memory; write device: cpu"
            )
    if (offloads(checked, "param") and zero_stage < 3) or (offloads(checked, "optimizer") and zero_stage == 0):
        raise ValueError(
            f"{ZERO} offloads at deepspeed.zero_stage {zero_stage}; optimiser states can be from stage 1 on, parameters at stage 3"
        )
    return checked


def offloads(config: Mapping[str, Any], what: str) -> bool:
    """Whether a checked configuration has `optimizer` or `param` elsewhere than on the device that trains."""
    return bool(_device_of(config, what) != "none")


def _device_of(config: Mapping[str, Any], what: str) -> Any:
    offload = config.get(ZERO, {}).get(f"offload_{what}")
    return offload.get("device", "none") if isinstance(offload, Mapping) else "none"


def _refuse(prefix: str, given: Mapping[str, Any], *, refused: Mapping[str, str], passed: frozenset[str]) -> None:
    for key in given:
        if key in refused:
            raise ValueError(f"{prefix}{key} cannot be used in a search: {refused[key]}; leave it out")
        if key not in passed:
            likely = nearest(str(key), [*passed, *refused], cutoff=0.0)
            raise ValueError(f"{prefix}{key} is no key of DeepSpeed that is known here; did you mean {likely!r}?")


def _without_auto(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_auto(inner) for key, inner in value.items() if inner != _AUTO}


def _is_off(key: str, value: Any) -> bool:
    """Whether a value asks for nothing: an optimiser that is AdamW with all its numbers left to the recipe, or what is not enabled."""
    if not isinstance(value, Mapping):
        return value in (None, False, -1, _AUTO)
    if "enabled" in value:
        return value["enabled"] in (False, _AUTO)
    asked = _without_auto(value)
    if key == "optimizer":
        return (
            asked.get("type", "AdamW") in ("Adam", "AdamW") and not asked.get("params") and not asked.keys() - {"type", "params"}
        )
    return not asked
