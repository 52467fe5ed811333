"""The recipe's proxy: the model that trains during the search, and how it is spread over devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from fastmix_data.recipe.deepspeed.raw_config import ZERO, checked_config, offloads, read_config
from fastmix_data.recipe.section import Section, require_one


def _default_proxy_config() -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 344,
    }


class LoraSection(Section):
    """Low-rank adapters, which are trained in place of a checkpoint's weights; needs the package `peft`, as `fastmix[lora]` installs it."""

    rank: int = Field(8, ge=1, description="Rank of each adapter.")
    alpha: float = Field(16.0, gt=0, description="What an adapter adds is multiplied by alpha / rank.")
    target_modules: tuple[str, ...] | None = Field(
        None, min_length=1, description="Names of the modules that get one; all linear layers but the head when not given."
    )


class ProxySection(Section):
    """The model that trains during the search: a `transformers` causal LM."""

    config: dict[str, Any] | None = Field(
        None,
        description="A `transformers` configuration with its model_type. vocab_size is filled in from the tokenizer; where the default of "
        "num_key_value_heads does not divide num_attention_heads it is their number, and a pad_token_id outside the vocabulary is none.",
    )
    checkpoint: str | None = Field(None, description="A local folder or hub name to start from instead of fresh weights.")
    lora: LoraSection | None = Field(
        None,
        description="Train adapters instead of the checkpoint's own weights, as `lora: {}`; scores are then of the adapters.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default(cls, value: Any) -> Any:
        return {"config": _default_proxy_config()} if value == {} else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("config", "checkpoint"))
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs a model_type, for example model_type: llama")
        if self.lora is not None and self.checkpoint is None:
            raise ValueError("lora adapts a trained model; give checkpoint too, or leave lora out")
        return self


def _read_config(value: Any, info: ValidationInfo) -> Any:
    return read_config(value, base=(info.context or {}).get("base", Path()))


def _check_config(config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    # Without a stage there is nothing to check against: that key is refused first.
    return checked_config(config, zero_stage=info.data["zero_stage"]) if "zero_stage" in info.data else config


RawConfig = Annotated[
    dict[str, Any], BeforeValidator(_read_config, json_schema_input_type=str | dict[str, Any]), AfterValidator(_check_config)
]


class DeepspeedSection(Section):
    """How the proxy is spread over devices."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="ZeRO stage: 0 none (bf16 takes 1 then), 1 optimiser, 2 and gradients, 3 and parameters."
    )
    config: RawConfig = Field(
        {},
        description="A raw DeepSpeed configuration (offload, buckets, data types, profilers), or the path of its JSON file. What the "
        'recipe sets is left out there or "auto", as is what DeepSpeed is to choose.',
    )

    def on_one_rank(self) -> DeepspeedSection:
        """Without ZeRO, which has nothing to spread there and does not change what is computed, unless it holds memory elsewhere."""
        if offloads(self.config, "optimizer") or offloads(self.config, "param"):
            return self
        return DeepspeedSection(zero_stage=0, config={key: value for key, value in self.config.items() if key != ZERO})
