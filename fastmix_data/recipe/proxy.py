"""The recipe's proxy: the model that trains during the search, and how it is spread over devices."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fastmix_data.recipe.section import Section, require_one


def _default_proxy_config() -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 344,
    }


class ProxySection(Section):
    """The model that trains during the search: a `transformers` causal LM."""

    config: dict[str, Any] | None = Field(
        None,
        description="A `transformers` configuration with its model_type; vocab_size is filled in from the tokenizer.",
    )
    checkpoint: str | None = Field(None, description="A local folder or hub name to start from instead of fresh weights.")

    @model_validator(mode="before")
    @classmethod
    def _default(cls, value: Any) -> Any:
        return {"config": _default_proxy_config()} if value == {} else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("config", "checkpoint"))
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs a model_type, for example model_type: llama")
        return self


class DeepspeedSection(Section):
    """How the proxy is spread over devices."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="ZeRO stage: 0 none (bf16 takes 1 then), 1 optimiser, 2 and gradients, 3 and parameters."
    )
