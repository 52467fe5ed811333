"""The proxy model: any causal language model of `transformers`, from a configuration or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fastmix_data.errors import RecipeError
from fastmix_data.git.pointers import require_no_pointer_among
from fastmix_data.messages import first_line, nearest
from fastmix_data.recipe.proxy import ProxySection

_MAX_PADDED_VOCABULARY = 1024


def proxy_config(proxy: ProxySection, *, base: Path, vocab_size: int | None, sequence_length: int) -> Any:
    """The model's configuration, checked against the tokenizer before any weight is made.

    Args:
        base: folder that a relative path of a checkpoint starts from.
        vocab_size: of the tokenizer; None while it is not known.

    Raises:
        RecipeError: unknown model type or key, a vocabulary that does not fit, too few positions, or no such checkpoint.
    """
    config = _from_checkpoint(proxy, base) if proxy.checkpoint else _from_keys(proxy, vocab_size)
    if vocab_size is not None:
        _check_vocabulary(config, proxy, vocab_size)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < sequence_length:
        problem = f"{sequence_length} is longer than the proxy's max_position_embeddings {positions}"
        raise RecipeError("training.sequence_length", problem, "shorten the one or raise the other")
    return config


def _checkpoint_path(proxy: ProxySection, base: Path) -> str:
    assert proxy.checkpoint is not None
    local = base / Path(proxy.checkpoint).expanduser()
    return str(local) if local.exists() else proxy.checkpoint


def _from_checkpoint(proxy: ProxySection, base: Path) -> Any:
    require_no_pointer_among(Path(_checkpoint_path(proxy, base)), where="proxy.checkpoint")
    try:
        return AutoConfig.from_pretrained(_checkpoint_path(proxy, base))
    except (OSError, ValueError) as error:
        problem = f"{proxy.checkpoint!r} is neither a folder with a transformers model nor a hub name that can be reached"
        raise RecipeError(
            "proxy.checkpoint", f"{problem} ({first_line(error)})", "check the name, the path and the network"
        ) from error


def _from_keys(proxy: ProxySection, vocab_size: int | None) -> Any:
    given = dict(proxy.config or {})
    model_type = given.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise RecipeError("proxy.config.model_type", f"transformers has no model type {model_type!r}", "llama is one") from error
    for key in given:
        if not hasattr(known, key):
            likely = nearest(key, (name for name in vars(known) if name[0] != "_"), cutoff=0.0)
            raise RecipeError(f"proxy.config.{key}", f"a {model_type} configuration has no such key", f"did you mean {likely!r}?")
    if vocab_size is not None:
        given.setdefault("vocab_size", vocab_size)
    try:
        return AutoConfig.for_model(model_type, **given)
    except (ValueError, TypeError) as error:
        raise RecipeError("proxy.config", " ".join(str(error).split()), f"see the keys of transformers' {model_type}") from error


def _check_vocabulary(config: Any, proxy: ProxySection, vocab_size: int) -> None:
    if proxy.checkpoint is None:
        fits = config.vocab_size >= vocab_size
        remedy = "leave proxy.config.vocab_size out, it is filled in"
    else:  # a model's vocabulary may be padded to a round number, but not be another one
        fits = vocab_size <= config.vocab_size < vocab_size + _MAX_PADDED_VOCABULARY
        remedy = "give the checkpoint's own tokenizer in tokenizer.file or tokenizer.hf"
    if not fits:
        raise RecipeError("proxy", f"its vocabulary has {config.vocab_size} tokens, the shards' tokenizer {vocab_size}", remedy)


def build_proxy(proxy: ProxySection, *, config: Any, base: Path, seed: int) -> nn.Module:
    """The model in float32, its weights fixed by `seed` or read from the checkpoint."""
    torch.manual_seed(seed)
    if proxy.checkpoint:
        model = AutoModelForCausalLM.from_pretrained(_checkpoint_path(proxy, base), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.use_cache = False
    assert isinstance(model, nn.Module)
    return model
