"""The recipe's training: how a proxy is trained, in the search and everywhere else that one is."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fastmix_data.recipe.section import Section
from fastmix_data.units import TokenCount


class TrainingSection(Section):
    """How a proxy is trained: budget, batch, optimiser, precision, seed. Proxies with the same of these are comparable."""

    token_budget: TokenCount = Field(description="Tokens the proxy trains on; with the batch it sets the number of steps.")
    sequence_length: int = Field(128, ge=8, description="Tokens of a training sequence; divides shards.block_tokens.")
    document_attention: bool = Field(
        False,
        description="Attention stays inside a document and positions start anew with each, as with examples of which only part carries "
        "loss, where it is always so. A document's first token is predicted from the end of the one before, as without.",
    )
    global_batch: int = Field(32, ge=1, description="Sequences of one optimiser step over all ranks.")
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Sequences of one forward pass on one rank. auto: all of the rank's share of global_batch, or as many as its memory "
        "holds. It changes memory and speed, not what is computed.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Passes keep the input of each of the proxy's blocks in place of all its activations, and compute the block once more "
        "for its gradient: about a third more time, memory that hardly grows with the number of blocks, and the same results. Proxies "
        "trained side by side keep theirs; it is tried how many fit.",
    )
    compile: bool = Field(
        False,
        description="Training passes run what torch.compile makes of each of the proxy's blocks: the same losses up to rounding, other "
        "dropout, some seconds before the first step. Not with deepspeed.zero_stage 3. Proxies trained side by side are not compiled.",
    )
    learning_rate: float = Field(
        3e-3,
        gt=0,
        description="Peak AdamW learning rate; warm-up, then cosine. When not given, 3e-3 for a fresh proxy, "
        "1e-4 from a checkpoint, and 1e-3 for its adapters (proxy.lora).",
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    min_lr_fraction: float = Field(0.1, ge=0, le=1, description="Learning rate at the end, relative to the peak.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay of matrices.")
    adam_betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW averaging coefficients.")
    gradient_clipping: float = Field(1.0, ge=0, description="Largest gradient norm; 0 for none.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it, else fp32.")
    seed: int = Field(0, ge=0, description="Fixes the proxy's initial weights and the order of the data.")
    locality_window: int = Field(
        0,
        ge=0,
        description="Shuffle sequences within windows of this many, for storage with slow seeks; 0 shuffles all.",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError(
                f"{value} is too narrow for target gradients, which scores are taken from; use bf16, or fp32 where there is none"
            )
        return value

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.num_steps < 2:
            raise ValueError(
                f"token_budget {self.token_budget} is less than two steps of {self.global_batch} x {self.sequence_length} "
                "tokens; raise it or lower global_batch"
            )
        return self

    @property
    def num_steps(self) -> int:
        """Optimiser steps the budget pays for."""
        return self.token_budget // self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one optimiser step over all ranks."""
        return self.global_batch * self.sequence_length

    @property
    def num_tokens(self) -> int:
        """Tokens of all steps; a rest of the budget that makes no step is left over."""
        return self.num_steps * self.tokens_per_step

    def with_steps(self, num_steps: int) -> Self:
        """The same training for another number of steps."""
        return self.model_copy(update={"token_budget": num_steps * self.tokens_per_step})

    def with_seed(self, seed: int) -> Self:
        """The same training with another seed."""
        return self.model_copy(update={"seed": seed})
