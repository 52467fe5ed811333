"""The recipe: one YAML file that says everything about a run. These models are its only definition.

Every field's description gives its unit and effect; `fastmix recipe --schema` and the documentation print them. Reading the file,
overrides and explanations of mistakes are in `recipe_file.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from fastmix_data.recipe_constraints import ConstraintsSection
from fastmix_data.recipe_section import Section, require_one
from fastmix_data.units import ByteCount, TokenCount, parse_count

_PULLED_TRAVEL, _FREE_TRAVEL, _SLOWEST_LOGITS, _FASTEST_LOGITS = 7.5, 20.0, 0.05, 0.3
_PULL = 3.0
NUM_TRIALS, _FEWEST_TRIAL_STEPS = 6, 30
SOURCE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


FilePatterns = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | list[str]), Field(min_length=1)]


class TrainTokenizer(Section):
    """Train a byte-level BPE on a sample of the sources."""

    vocab_size: int = Field(8192, ge=257, description="Number of tokens, the end-of-text token and 256 bytes included.")
    sample_bytes: ByteCount = Field(20_000_000, description="Bytes of text to train on, divided equally over the sources.")
    seed: int = Field(0, description="Chooses which documents are sampled.")


class TokenizerSection(Section):
    """Where the tokenizer comes from: exactly one of train, file, hf, bytes."""

    train: TrainTokenizer | None = Field(None, description="Train a byte-level BPE on a sample of the sources.")
    file: str | None = Field(None, description="A `tokenizer.json` file.")
    hf: str | None = Field(None, description="A Hugging Face hub name, as org/name.")
    bytes: bool = Field(False, description="One token per byte, plus the end-of-text token (257 in all).")
    eos_token: str | None = Field(
        None, description="The token written after every document; found by its usual names when not given."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("train", "file", "hf", "bytes"))
        return self


class TextSection(Section):
    """Documents in files and the keys that hold their text; with `prompt` and `completion`, loss is on the completion only."""

    files: FilePatterns | None = Field(
        None,
        description="Paths, globs or fsspec URLs of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt files; relative to the recipe.",
    )
    text: str | None = Field(None, description="Key or column of the text; `text` when nothing is given. Not for .txt.")
    prompt: str | None = Field(None, description="Key of the prompt, which is read but carries no loss; needs `completion`.")
    completion: str | None = Field(None, description="Key of the completion, the tokens that carry loss; needs `prompt`.")
    separator: str = Field("\n", description="Text put between prompt and completion; part of the prompt.")
    on_bad_text: Literal["replace", "refuse"] = Field(
        "replace",
        description="Broken UTF-8: replace the bytes by U+FFFD and count the document, or refuse the file.",
    )

    @model_validator(mode="after")
    def _text_or_pair(self) -> Self:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion go together; give both or neither")
        if self.prompt is not None and self.text is not None:
            raise ValueError("give text, or prompt and completion, not both")
        return self

    @property
    def text_keys(self) -> tuple[str, ...]:
        """(text,) or (prompt, completion)."""
        if self.prompt is not None and self.completion is not None:
            return (self.prompt, self.completion)
        return (self.text or "text",)

    @property
    def has_mask(self) -> bool:
        """Whether only part of the tokens carry loss."""
        return self.prompt is not None


class SourceSection(TextSection):
    """One training corpus."""

    dataset: str | None = Field(
        None,
        description="A `datasets` name, a folder of data files or a `save_to_disk` folder, read by streaming; instead of files.",
    )
    dataset_config: str | None = Field(None, description="Configuration name of `dataset`.")
    dataset_split: str = Field("train", description="Split of `dataset` to train on.")
    valid_files: FilePatterns | None = Field(
        None,
        description="Held-out files; without them, shards.valid_fraction of the documents is held out by hash of the text.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one(self, ("files", "dataset"))
        return self


class TargetFiles(TextSection):
    """A target that is not one of the sources."""

    files: FilePatterns = Field(description="Paths, globs or fsspec URLs, relative to the recipe.")
    weight: float = Field(1.0, gt=0, description="Weight of this target's mean token loss, relative to the others.")


class TargetSection(Section):
    """What the mixture should be good at: a weighted mean of mean token losses on held-out data."""

    sources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Sources whose held-out split counts, with relative weights."
    )
    files: dict[str, TargetFiles] = Field(default_factory=dict, description="Targets from files of their own, by name.")
    worst_case: bool = Field(
        False,
        description="Minimax: weights move to the target with the largest regret, its loss over that of a reference run at the same step. "
        "The reference mixture is not_worse_than, or uniform without it. The targets' own weights then only enter the reported mean.",
    )
    not_worse_than: Literal["uniform", "proportional"] | None = Field(
        None,
        description="Non-regression limit: no target may end worse than in a reference run of the same budget on this mixture.",
    )
    limit_tolerance: float = Field(0.0, ge=0, description="Slack of not_worse_than, in nats per loss token.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.sources and not self.files:
            raise ValueError("give at least one of sources and files")
        if self.worst_case and len(self.sources) + len(self.files) < 2:
            raise ValueError("worst_case needs at least two targets; name another in sources or files, or leave worst_case out")
        if self.limit_tolerance and self.not_worse_than is None:
            raise ValueError("limit_tolerance is the slack of a limit; give not_worse_than: uniform or proportional too")
        return self

    @property
    def reference_mixture(self) -> Literal["uniform", "proportional"] | None:
        """Mixture of the run that losses are held against, if the recipe asks for one."""
        return self.not_worse_than or ("uniform" if self.worst_case else None)

    def weights(self) -> dict[str, float]:
        """Weight of each target by name, summing to 1."""
        weights = dict(self.sources) | {name: files.weight for name, files in self.files.items()}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}


class ShardsSection(Section):
    """How tokens are laid out on disk."""

    block_tokens: int = Field(2048, ge=16, description="Tokens of a block, the unit of storage and of the manifest.")
    max_shard_bytes: ByteCount = Field(67_108_864, description="A shard is closed before it grows past this; memory of a worker.")
    valid_fraction: float = Field(0.02, ge=0, lt=0.5, description="Share of documents held out of sources without valid_files.")
    max_partition_bytes: ByteCount = Field(
        134_217_728,
        description="Bytes of input in one unit of work where the format can be cut (plain .jsonl, .parquet, .txt).",
    )


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

    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="ZeRO stage: 0 none, 1 optimiser, 2 and gradients, 3 and parameters.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it, else fp32.")


def _require_some(shares: Any) -> Any:
    if isinstance(shares, dict) and not any(shares.values()):
        raise ValueError("give at least one source a share above 0")
    return shares


# A mixture by name. Ratios count, not their sum; a source that is not named gets a thousandth of the uniform share.
NamedMixture = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
StartingMixture = Annotated[Literal["bigram", "uniform", "proportional"] | NamedMixture, AfterValidator(_require_some)]


class StopSection(Section):
    """When a search may end before its budget."""

    tolerance: float = Field(
        gt=0, lt=1, description="End when the averaged mixture moved by less than this share (half the sum of changes)."
    )


class SearchSection(Section):
    """The proxy run that learns the mixture."""

    token_budget: TokenCount = Field(description="Tokens the proxy trains on; with the batch it sets the number of steps.")
    sequence_length: int = Field(128, ge=8, description="Tokens of a training sequence; divides shards.block_tokens.")
    global_batch: int = Field(32, ge=1, description="Sequences of one optimiser step over all ranks.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Sequences of one forward pass on one rank; all of the rank's share when not given.",
    )
    learning_rate: float = Field(3e-3, gt=0, description="Peak AdamW learning rate; warm-up, then cosine.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    min_lr_fraction: float = Field(0.1, ge=0, le=1, description="Learning rate at the end, relative to the peak.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay of matrices.")
    adam_betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW averaging coefficients.")
    gradient_clipping: float = Field(1.0, ge=0, description="Largest gradient norm; 0 for none.")
    seed: int = Field(0, ge=0, description="Fixes the proxy's initial weights and the order of the data.")
    exploration: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Sampling is (1 - exploration) * weights + exploration * uniform; the loss weights make up for it.",
    )
    hypergradient: Literal["all", "last_block", "head"] = Field(
        "all",
        description="Parameters on which target and source gradients are compared: all, the last block and what follows it, or the "
        "output head alone.",
    )
    precondition: bool = Field(
        True,
        description="Divide the target gradient by the root of the optimiser's second moment, damped: the metric it steps in, in which a "
        "source is worth less as it is learned.",
    )
    score: Literal["inner_product", "per_gradient_norm"] = Field(
        "inner_product",
        description="A source's score: its alignment with the target gradient per loss token, or per unit of its sequences' gradient norm.",
    )
    update_interval: int = Field(16, ge=1, description="Steps between two updates of the mixture.")
    target_batch: int = Field(16, ge=1, description="Target sequences of one update, over all ranks; fresh ones every time.")
    target_memory: float = Field(
        0.8,
        ge=0,
        lt=1,
        description="Share of the earlier target gradients that is kept in the one sources are scored against: more is less noise, and "
        "slower to follow.",
    )
    weights_optimizer: Literal["exponentiated_gradient", "adam"] = Field(
        "exponentiated_gradient",
        description="Rule that moves the mixture: exponentiated gradient with scores in units of their spread, or Adam on the logits.",
    )
    weights_learning_rate: float | None = Field(
        None,
        gt=0,
        description="Size of one move of the mixture's logits. When not given, 7.5 over the number of updates, or 20 "
        "where prior_strength is 0, within 0.05 and 0.3: a logit can travel about as far in a short search as in a long one.",
    )
    shrink_scores: bool = Field(
        True,
        description="Shrink scores by the share of their spread that is signal, so that where sources differ by chance only the pull "
        "decides. Off without a pull, which takes back what early scores moved by chance, and where the targets' weights move.",
    )
    weights_warmup_steps: int = Field(20, ge=0, description="Steps before the first update; scores are taken from the start.")
    score_smoothing: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Memory of a source's score: share of the old evidence kept when the source is seen again.",
    )
    initial_weights: StartingMixture = Field(
        "bigram",
        description="Where the mixture starts, brought within the constraints: what is best for a bigram model of the sources, counted "
        "before training; uniform, by size in tokens, or given by name (relative; a source not named gets a thousandth of the "
        "uniform share).",
    )
    trial_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of token_budget for trials of the start: six short runs, in pairs, decide between the bigram mixture and its "
        "cube, which is more concentrated; 0 for none. There are none either where one would be shorter than 30 steps, where the "
        "targets' weights move, or from another start.",
    )
    prior: StartingMixture | None = Field(
        None,
        description="Mixture that prior_strength pulls to, as initial_weights are stated; where the mixture starts when not given. RegMix, "
        "Olmix and DoReMi in `fastmix compare` start from it too, from uniform where it is bigram or not given.",
    )
    prior_strength: float | None = Field(
        None,
        ge=0,
        description="Weight of KL(mixture || prior) in units of the scores' spread; larger is closer to the prior. When not given, 3, and "
        "0 where the targets' weights move (worst_case, not_worse_than), for the prior knows only those they start from.",
    )
    constraints: ConstraintsSection = Field(default_factory=ConstraintsSection)
    match_repetition: bool = Field(
        False,
        description="Let the proxy see a fixed part of each source, the search's tokens over emit.token_budget, so that at equal shares "
        "it repeats as often as in production.",
    )
    stop: StopSection | None = Field(
        None, description="End early once the mixture stands still; without it the budget is used up."
    )
    average_fraction: float = Field(1.0, gt=0, le=1, description="Last share of the trajectory that is averaged into the answer.")
    eval_sequences: int = Field(256, ge=1, description="Sequences per target half on which the loss is reported.")
    checkpoint_interval: int = Field(200, ge=1, description="Steps between checkpoints, from which a stopped search goes on.")
    locality_window: int = Field(
        0,
        ge=0,
        description="Shuffle sequences within windows of this many, for storage with slow seeks; 0 shuffles all.",
    )

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.num_steps < 2:
            raise ValueError(
                f"token_budget {self.token_budget} is less than two steps of {self.global_batch} x {self.sequence_length} "
                "tokens; raise it or lower global_batch"
            )
        if self.num_steps < self.weights_warmup_steps + self.update_interval:
            raise ValueError(
                f"token_budget {self.token_budget} is {self.num_steps} steps, which end before the first update of the mixture (step "
                f"{self.weights_warmup_steps + self.update_interval}); raise it, or lower global_batch, weights_warmup_steps or "
                "update_interval"
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
    def pull(self) -> float:
        """`prior_strength`, or what it is when not given."""
        return _PULL if self.prior_strength is None else self.prior_strength

    @property
    def logit_rate(self) -> float:
        """`weights_learning_rate`, or what it is when not given."""
        if self.weights_learning_rate is not None:
            return self.weights_learning_rate
        num_updates = max(1, self.num_steps // self.update_interval - self.weights_warmup_steps // self.update_interval)
        travel = _PULLED_TRAVEL if self.pull else _FREE_TRAVEL
        return min(max(travel / num_updates, _SLOWEST_LOGITS), _FASTEST_LOGITS)


def _parse_epochs(value: Any) -> Any:
    if isinstance(value, str):
        return parse_count(value)
    return value


Epochs = Annotated[float, BeforeValidator(_parse_epochs), Field(gt=0)]


class EmitSection(Section):
    """The corpus to ship."""

    token_budget: TokenCount = Field(description="Tokens of the production run.")
    max_epochs: Epochs | dict[str, Epochs] = Field(
        4.0, description="How often a source may be repeated: one number, or one by source name (others: 4)."
    )
    seed: int = Field(0, ge=0, description="Fixes the order of blocks.")

    def epochs_of(self, source: str) -> float:
        """The cap of one source."""
        if isinstance(self.max_epochs, dict):
            return self.max_epochs.get(source, 4.0)
        return self.max_epochs


class Recipe(Section):
    """A fastmix run."""

    workdir: str = Field("run", description="Folder of everything the run makes; relative to the recipe.")
    tokenizer: TokenizerSection
    sources: dict[str, SourceSection] = Field(min_length=1, description="Training corpora by name.")
    shards: ShardsSection = Field(default_factory=lambda: ShardsSection())
    target: TargetSection
    proxy: ProxySection = Field(default_factory=lambda: ProxySection(config=_default_proxy_config()))
    deepspeed: DeepspeedSection = Field(default_factory=lambda: DeepspeedSection())
    search: SearchSection
    emit: EmitSection

    _base: Path = PrivateAttr(default_factory=Path.cwd)
    _search_path: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for group, names in (("sources", tuple(self.sources)), ("target.files", tuple(self.target.files))):
            for name in names:
                if not SOURCE_NAME.match(name):
                    raise ValueError(
                        f"{group}: {name!r} is not a usable name; use letters, digits, '_' and '-', at most 48, starting with a "
                        "letter or digit"
                    )
        for name in self.target.files:
            if name in self.sources:
                raise ValueError(f"target.files: {name!r} is the name of a source too; choose another")
        constraints = self.search.constraints
        for name in constraints.groups:
            if name in self.sources:
                raise ValueError(f"search.constraints.groups: {name!r} is the name of a source too; choose another")
        by_source: tuple[tuple[str, object], ...] = (
            ("target.sources", self.target.sources),
            ("emit.max_epochs", self.emit.max_epochs),
            ("search.initial_weights", self.search.initial_weights),
            ("search.prior", self.search.prior),
            ("search.constraints.floor", constraints.floor),
            ("search.constraints.ceiling", constraints.ceiling),
            ("search.constraints.pinned", constraints.pinned),
            *((f"search.constraints.groups.{name}", dict.fromkeys(group.sources)) for name, group in constraints.groups.items()),
        )
        for group, value in by_source:
            for name in value if isinstance(value, dict) else ():
                if name not in self.sources:
                    raise ValueError(f"{group}: there is no source {name!r}; the sources are {', '.join(self.sources)}")
        first_update = self.search.weights_warmup_steps + self.search.update_interval
        if self.main_run.search.num_steps < first_update:
            raise ValueError(
                f"search.trial_fraction {self.search.trial_fraction:g} leaves {self.main_run.search.num_steps} steps to the search, which "
                f"end before the first update of the mixture (step {first_update}); lower it, or raise search.token_budget"
            )
        if self.shards.block_tokens % self.search.sequence_length:
            raise ValueError(
                f"search.sequence_length {self.search.sequence_length} does not divide shards.block_tokens "
                f"{self.shards.block_tokens}; choose one that does, for example {_largest_divisor(self)}"
            )
        return self

    @property
    def trial_steps(self) -> int:
        """Optimiser steps of each of the NUM_TRIALS trials of the start; 0 where there are none."""
        search = self.search
        steps = int(search.trial_fraction * search.num_steps) // NUM_TRIALS
        has_trials = search.initial_weights == "bigram" and self.target.reference_mixture is None and steps >= _FEWEST_TRIAL_STEPS
        return steps if has_trials else 0

    @property
    def trial(self) -> Recipe:
        """The recipe with one trial's budget."""
        return self._with_search(token_budget=self.trial_steps * self.search.tokens_per_step)

    @property
    def main_run(self) -> Recipe:
        """The recipe of the run in which the mixture moves, with the budget that trials leave.

        Where the targets' weights move there is no pull, and scores of earlier weights do not say how reliable those of now are.
        """
        search = self.search
        num_steps = search.num_steps - NUM_TRIALS * self.trial_steps
        budget = num_steps * search.tokens_per_step
        if self.target.reference_mixture is None:
            return self._with_search(token_budget=budget)
        strength = 0.0 if search.prior_strength is None else search.prior_strength
        return self._with_search(token_budget=budget, prior_strength=strength, shrink_scores=False)

    def _with_search(self, **changes: Any) -> Recipe:
        return self.model_copy(update={"search": self.search.model_copy(update=changes)})

    @property
    def share_seen(self) -> float:
        """Part of every source's sequences that the proxy may see: with match_repetition the search's tokens over the production run's."""
        if not self.search.match_repetition:
            return 1.0
        return min(1.0, self.search.num_steps * self.search.tokens_per_step / self.emit.token_budget)

    @property
    def base(self) -> Path:
        """Folder that relative paths of the recipe start from."""
        return self._base

    @property
    def workdir_path(self) -> Path:
        """Absolute path of the workdir."""
        return self.resolve(self.workdir)

    def located(self, base: Path) -> Recipe:
        """The same recipe with relative paths starting from `base`."""
        copy = self.model_copy()
        copy._base = base.resolve()
        return copy

    @property
    def search_path(self) -> Path:
        """Absolute path of the search's results: `search` in the workdir, unless `searching_in` named another folder."""
        return self._search_path or self.workdir_path / "search"

    def searching_in(self, directory: Path) -> Recipe:
        """The same recipe with the search's results in another folder, for a second search of the same shards."""
        copy = self.model_copy()
        copy._search_path = directory.resolve()
        return copy

    def resolve(self, path: str) -> Path:
        """Absolute form of a local path of the recipe."""
        return self._base / Path(path).expanduser()


def _largest_divisor(recipe: Recipe) -> int:
    block = recipe.shards.block_tokens
    return max(length for length in range(1, min(recipe.search.sequence_length, block) + 1) if block % length == 0)
