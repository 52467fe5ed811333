"""The proxy model: any causal language model of `transformers`, from a configuration or a checkpoint."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from fastmix_data.errors import RecipeError
from fastmix_data.git.pointers import require_no_pointer_among
from fastmix_data.messages import and_more, first_line, nearest
from fastmix_data.recipe.proxy import LoraSection, ProxySection
from fastmix_data.units import format_count

_MAX_PADDED_VOCABULARY = 1024
_ADAPTER_FILE = "adapter_config.json"


def proxy_config(proxy: ProxySection, *, base: Path, vocab_size: int | None, sequence_length: int) -> Any:
    """The model's configuration, checked against the tokenizer before any weight is made.

    Args:
        base: folder that a relative path of a checkpoint starts from.
        vocab_size: of the tokenizer; None while it is not known.

    Raises:
        RecipeError: unknown model type or key, no causal language model, a vocabulary that does not fit, too few positions, or no such
            checkpoint.
    """
    with without_chatter():
        config = _from_checkpoint(proxy, base) if proxy.checkpoint else _from_keys(proxy, vocab_size)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        where = "proxy.checkpoint" if proxy.checkpoint else "proxy.config.model_type"
        raise RecipeError(
            where, f"{config.model_type} is no causal language model of transformers", "llama, qwen2 and gpt2 are some"
        )
    if vocab_size is not None:
        _check_vocabulary(config, proxy, vocab_size)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and 0 < positions < sequence_length:  # -1 is some types' word for any number
        problem = f"{sequence_length} is longer than the proxy's max_position_embeddings {positions}"
        raise RecipeError("training.sequence_length", problem, "shorten the one or raise the other")
    return config


def _checkpoint_path(proxy: ProxySection, base: Path) -> str:
    assert proxy.checkpoint is not None
    local = base / Path(proxy.checkpoint).expanduser()
    return str(local) if local.exists() else proxy.checkpoint


def _from_checkpoint(proxy: ProxySection, base: Path) -> Any:
    require_no_pointer_among(Path(_checkpoint_path(proxy, base)), where="proxy.checkpoint")
    if (Path(_checkpoint_path(proxy, base)) / _ADAPTER_FILE).exists():
        remedy = "merge it first, with peft's merge_and_unload() and save_pretrained()"
        raise RecipeError("proxy.checkpoint", f"{proxy.checkpoint!r} is an adapter, not a model", remedy)
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
    except (ValueError, TypeError) as error:
        raise RecipeError("proxy.config.model_type", f"transformers has no model type {model_type!r}", "llama is one") from error
    for key in given:
        if not hasattr(known, key):
            likely = nearest(key, (name for name in vars(known) if name[0] != "_"), cutoff=0.0)
            raise RecipeError(f"proxy.config.{key}", f"a {model_type} configuration has no such key", f"did you mean {likely!r}?")
    if vocab_size is not None:
        given.setdefault("vocab_size", vocab_size)
    try:
        return AutoConfig.for_model(model_type, **_fitting_defaults(known, given), **given)
    except Exception as error:  # a configuration may compute anything from its keys
        raise RecipeError("proxy.config", _in_one_line(error), f"see the keys of transformers' {model_type}") from error


def _fitting_defaults(known: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Values for keys that were not given, where the model type's own default contradicts one that was."""
    # Sizes of the published model, beside which a user's are small: 4 heads cannot share 32 keys, nor 300 tokens have number 32,000.
    keys = {name: key for name, key in inspect.signature(type(known).__init__).parameters.items() if name not in given}
    filled: dict[str, Any] = {}
    heads, shared = given.get("num_attention_heads"), keys.get("num_key_value_heads")
    if isinstance(heads, int) and shared and isinstance(shared.default, int) and heads % shared.default:
        filled["num_key_value_heads"] = heads
    vocab_size, padding = given.get("vocab_size"), keys.get("pad_token_id")
    if isinstance(vocab_size, int) and padding and isinstance(padding.default, int) and padding.default >= vocab_size:
        # One type wants a number whatever happens; what is wrong with its default is for transformers to say then.
        filled |= {"pad_token_id": None} if "None" in str(padding.annotation) else {}
    return filled


def _in_one_line(error: Exception) -> str:
    return shorten(" ".join(str(error).split()) or type(error).__name__, 300, placeholder=" ...")


def _check_vocabulary(config: Any, proxy: ProxySection, vocab_size: int) -> None:
    size = config.get_text_config().vocab_size
    if proxy.checkpoint is None:
        fits = size >= vocab_size
        remedy = "leave proxy.config.vocab_size out, it is filled in"
    else:  # a model's vocabulary may be padded to a round number, but not be another one
        fits = vocab_size <= size < vocab_size + _MAX_PADDED_VOCABULARY
        remedy = "give the checkpoint's own tokenizer in tokenizer.file or tokenizer.hf"
    if not fits:
        raise RecipeError("proxy", f"its vocabulary has {size} tokens, the shards' tokenizer {vocab_size}", remedy)


def build_proxy(proxy: ProxySection, *, config: Any, base: Path, seed: int) -> nn.Module:
    """The model in float32, its weights fixed by `seed` or read from the checkpoint; with `proxy.lora`, only its adapters can be trained.

    Raises:
        RecipeError: transformers cannot build it, it is larger than this machine's memory, or the checkpoint lacks weights.
    """
    torch.manual_seed(seed)
    with without_chatter():
        model = _load(proxy, base) if proxy.checkpoint else _make(config)
    model.config.use_cache = False
    assert isinstance(model, nn.Module)
    if proxy.lora is None:
        return model
    torch.manual_seed(seed)  # whatever reading the checkpoint drew
    return with_adapters(model, proxy.lora)


def _make(config: Any) -> Any:
    try:
        with torch.device("meta"):
            num_parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config, dtype=torch.float32).parameters())
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 4 * num_parameters > memory:
            problem = f"a model of {format_count(num_parameters)} parameters in float32 is larger than this machine's memory"
            raise RecipeError("proxy.config", problem, "give hidden_size, num_hidden_layers and the like; a proxy is small")
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except RecipeError:
        raise
    except Exception as error:  # whatever a model's own code makes of values that do not go together
        problem = f"transformers cannot build this {config.model_type} ({_in_one_line(error)})"
        raise RecipeError("proxy.config", problem, "see which of its keys do not go together") from error


def _load(proxy: ProxySection, base: Path) -> Any:
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            _checkpoint_path(proxy, base), dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # of reading any of several formats, and of the model's own code
        problem = f"{proxy.checkpoint!r} cannot be loaded ({_in_one_line(error)})"
        raise RecipeError("proxy.checkpoint", problem, "save it anew with transformers' save_pretrained") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would go on with random ones
        problem = f"{proxy.checkpoint!r} lacks weights of {type(model).__name__} ({and_more(missing)})"
        raise RecipeError("proxy.checkpoint", problem, "give the checkpoint of a causal language model")
    return model


def with_adapters(model: nn.Module, lora: LoraSection) -> nn.Module:
    """A model of which only low-rank adapters can be trained.

    Raises:
        RecipeError: peft is not installed, or has no adapter for a module.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise RecipeError(
            "proxy.lora", "needs the package peft, which is not installed", "pip install 'fastmix[lora]'"
        ) from error
    targets = "all-linear" if lora.target_modules is None else list(lora.target_modules)
    config = LoraConfig(task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)
    try:
        adapted: nn.Module = get_peft_model(model, config)
    except Exception as error:  # peft's word for modules that are not there, or that it has no adapter for
        raise RecipeError("proxy.lora", _in_one_line(error), "name linear modules of the model in target_modules") from error
    return adapted


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keep transformers from remarks on special tokens of other vocabularies, and from progress bars of its own."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
