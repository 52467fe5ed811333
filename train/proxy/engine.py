"""The only file that imports DeepSpeed: ranks, ZeRO, optimiser steps."""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore, Store

from fastmix_data.recipe.proxy import DeepspeedSection
from fastmix_data.recipe.training import TrainingSection
from train.checkpoints.tensor_files import Runs, SavedTensors
from train.proxy.compiled_blocks import compile_blocks
from train.proxy.deepspeed_config import engine_config, refusal, stage_taken
from train.proxy.held_runs import counters, put_back, runs_to_save
from train.proxy.loss_model import LossModel
from train.proxy.losses import ModelInputs
from train.proxy.recomputation import recompute_blocks


def prepare_environment() -> None:
    """Choose DeepSpeed's accelerator before it is imported, and keep it from building and printing."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and on CPU without the shared-memory extension that it would compile for half a minute: gloo is enough."""
    prepare_environment()
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # ZeRO calls collectives by names that torch has renamed, and torch says so at every call of them.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # The device under the current context is the one that `_join` chose.
    warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context", UserWarning)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


@contextmanager
def process_group(*, rank: int, world_size: int, rendezvous: str | Store | None = None) -> Iterator[None]:
    """Join the ranks of this run: NCCL with GPUs, gloo without.

    DeepSpeed holds on to the first group of a process, so a group lasts as long as the process and serves every run in it.

    Args:
        rendezvous: an address such as file:///tmp/x, or a store that all ranks see; None for a single rank.
    """
    if not dist.is_initialized():
        _join(rank=rank, world_size=world_size, rendezvous=rendezvous)
        atexit.register(dist.destroy_process_group)
    assert dist.get_world_size() == world_size
    yield
    if world_size > 1:
        dist.barrier()  # gloo aborts a rank whose peers have left


def _join(*, rank: int, world_size: int, rendezvous: str | Store | None) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size)):
        os.environ.setdefault(name, str(value))  # DeepSpeed looks for them; a launcher has set them already
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if isinstance(rendezvous, Store):
        dist.init_process_group(backend, store=rendezvous, rank=rank, world_size=world_size)
    elif rendezvous is not None:
        dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=world_size)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the kernel and paging it in again at the next step.

    A step frees hundreds of megabytes of activations. Measured on 2 cores with a 2-layer proxy: 0.50 s a step without, 0.39 s with.
    """
    libc = ctypes.CDLL(None)
    if not torch.cuda.is_available() and hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


class ProxyEngine:
    """A proxy model under ZeRO with AdamW.

    Attributes:
        module: the bare model, for passes that must not feed the optimiser.
        num_micro_batches: forward and backward passes of one optimiser step on this rank.
        num_trained: of the `num_parameters`, those that are not frozen.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        training: TrainingSection,
        deepspeed: DeepspeedSection,
        micro_batch: int,
        whole_logits: bool = False,
    ) -> None:
        """Spread the model over the ranks of the process group.

        Args:
            whole_logits: hold the logits of a pass at once even where they are large, for whoever looks at whole sequences of them.

        Raises:
            RecipeError: the model has no blocks whose activations could be left out.
        """
        _keep_freed_memory()
        ds = import_deepspeed()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.num_micro_batches = training.global_batch // (self.world_size * micro_batch)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self._zero_stage = stage_taken(training, deepspeed)
        self._moments_linked = False
        losses = LossModel(model, shape=(micro_batch, training.sequence_length), whole_logits=whole_logits)
        if training.compile:
            compile_blocks(model)
        if training.activation_checkpointing:
            recompute_blocks(model)
        optimizer = torch.optim.AdamW(
            _decay_groups(model, training.weight_decay),
            lr=training.learning_rate,
            betas=training.adam_betas,
            fused=torch.cuda.is_available(),
        )
        self._basic_optimizer = optimizer
        config = engine_config(
            training,
            deepspeed,
            micro_batch=micro_batch,
            num_micro_batches=self.num_micro_batches,
            num_trained=self.num_trained,
        )
        try:
            self._engine, self._optimizer, _, _ = ds.initialize(
                model=losses, optimizer=optimizer, config=config, dist_init_required=False
            )
        except Exception as error:  # its checks of a configuration raise all sorts
            if not deepspeed.config or isinstance(error, torch.OutOfMemoryError):
                raise
            raise refusal(error) from error
        self._losses: LossModel = self._engine.module
        self.module: Any = self._losses.model
        self.device = torch.device(self._engine.device)

    def close(self) -> None:
        """Give the memory of parameters, gradients and optimiser back; nothing else may be called after it.

        DeepSpeed ties model, optimiser and engine to each other and to the process, and frees none of them by itself.
        """
        self._engine.destroy()
        if self._zero_stage == 3:
            _forget_partitioned(self._losses)
        # A model's hooks lead to its engine, its parameters to their optimiser. Whoever still holds one, as a run's probe does,
        # must hold shells.
        for parameter in self.module.parameters():
            vars(parameter).clear()
            parameter.grad, parameter.data = None, parameter.new_empty(0)
        vars(self._engine).clear()
        del self.module, self._losses, self._engine, self._optimizer, self._basic_optimizer, parameter
        gc.collect()

    def token_losses(self, inputs: ModelInputs, labels_BT: Tensor) -> Tensor:
        """Token losses in nats of a pass that trains, shape (B, T), 0 where a label carries none."""
        losses_BT: Tensor = self._engine(labels_BT, **self._losses.arguments(inputs))
        return losses_BT

    def sequence_losses(self, inputs: ModelInputs, labels_BT: Tensor) -> Tensor:
        """Sum of each sequence's token losses in nats, of a pass that trains, shape (B,)."""
        return self.token_losses(inputs, labels_BT).sum(dim=1)

    def bare_token_losses(self, inputs: ModelInputs, labels_BT: Tensor) -> Tensor:
        """Token losses in nats of a pass that the optimiser does not hear of, shape (B, T), 0 where a label carries none."""
        losses_BT: Tensor = self._losses(labels_BT, **self._losses.arguments(inputs))
        return losses_BT

    def bare_sequence_losses(self, inputs: ModelInputs, labels_BT: Tensor) -> Tensor:
        """Sum of each sequence's token losses in nats, of a pass that the optimiser does not hear of, shape (B,)."""
        return self.bare_token_losses(inputs, labels_BT).sum(dim=1)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of this rank's part of the global batch's loss; over ranks and micro-batches parts add up.

        DeepSpeed averages over both, hence the factor.
        """
        self._engine.backward(loss * (self.world_size * self.num_micro_batches))

    @property
    def loss_scale(self) -> float:
        """What activations' gradients are multiplied by during `backward`, relative to the loss that was given."""
        # DeepSpeed divides by the number of micro-batches before the backward pass, by that of ranks only when it adds gradients up.
        return float(self.world_size)

    def step(self, learning_rate: float, *, last_micro_batch: bool) -> None:
        """Count a micro-batch; after the last one clip, move the parameters and zero the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        # DeepSpeed counts micro-batches by itself, and moves the parameters when its own count says so.
        assert self._engine.is_gradient_accumulation_boundary() == last_micro_batch
        self._engine.step()

    @property
    def gradient_norm(self) -> float | None:
        """Of the last step, over all ranks and before clipping; None where ZeRO does not keep it. Waits for a GPU's step to end."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    @property
    def shards_gradients(self) -> bool:
        """Whether each rank holds a share of the gradients, as from ZeRO 2 on."""
        return self._zero_stage >= 2

    def second_moments(self, parameters: Sequence[nn.Parameter]) -> Iterator[tuple[int, Tensor]] | None:
        """Adam's bias-corrected mean square of each parameter's gradient, one after the other; None before the first step.

        What this rank holds of it where it shards gradients, the whole otherwise: the first element's number, and flat values from there
        on, none where other ranks hold all. All ranks ask together: under ZeRO-1 a whole one is put together from all of them.
        """
        if self._engine.global_steps == 0:
            return None
        if self._zero_stage in (1, 2) and not self._moments_linked:
            # DeepSpeed makes states readable by parameter within its first step, after the first group's, when the second group (the
            # vectors) has none yet, and marks the work as done. It is done again, once, when both have theirs.
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()
            self._moments_linked = True
        correction = 1 - self._optimizer.param_groups[0]["betas"][1] ** self._engine.global_steps
        held = (self._second_moment(parameter) for parameter in parameters)
        return (
            (first, square.to(self.device, torch.float32) / correction) for first, square in held
        )  # offloaded ones are elsewhere

    def _second_moment(self, parameter: Any) -> tuple[int, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state, safe_get_local_optimizer_state

        key, unpartitioned = "exp_avg_sq", self._basic_optimizer.state.get(parameter, {})
        # ZeRO-1 with one rank divides nothing either: no need to have each parameter put together.
        if self._zero_stage == 2 or (self._zero_stage == 1 and self.world_size == 1):
            mapping = parameter._hp_mapping  # None where all of it lies on other ranks
            if mapping is None:
                return 0, parameter.new_empty(0)
            return mapping.lp_fragment_address.start, mapping.get_hp_fragment(key)
        if self._zero_stage == 3:
            partition, size = safe_get_local_optimizer_state(parameter, key), parameter.ds_numel
            first = min(size, self.rank * partition.numel())
            return first, partition[: size - first]
        whole = unpartitioned[key] if key in unpartitioned else safe_get_full_optimizer_state(parameter, key)
        assert whole is not None, "the optimiser has no second moment of this parameter"
        return 0, whole.flatten()

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def runs(self) -> Runs:
        """This rank's runs of parameters, masters and optimiser states, not copied; those of all ranks together are all of it."""
        return runs_to_save(self.module, **self._optimizers, rank=self.rank, world_size=self.world_size)

    def counters(self) -> dict[str, float]:
        """What DeepSpeed and the optimiser have counted, the same on all ranks."""
        return {
            "steps": float(self._engine.global_steps),
            "skipped_steps": float(self._engine.skipped_steps),
            **counters(self._basic_optimizer),
        }

    def restore(self, saved: SavedTensors, counters: Mapping[str, float]) -> None:
        """Go on where `runs` and `counters` were taken, whatever the number of ranks and the ZeRO stage were."""
        put_back(self.module, saved, **self._optimizers, counted=counters)
        engine = self._engine
        engine.global_steps, engine.skipped_steps = int(counters["steps"]), int(counters["skipped_steps"])
        engine.micro_steps = engine.global_steps * self.num_micro_batches
        engine.global_samples = engine.global_steps * engine.train_batch_size()

    @property
    def _optimizers(self) -> dict[str, Any]:
        return {"wrapper": self._optimizer, "optimizer": self._basic_optimizer, "stage": self._zero_stage}


def own_device() -> torch.device:
    """The GPU of this process, as its process group chose it; the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def any_rank(asked: bool) -> bool:
    """Whether any rank asks; all ranks of the process group call it together."""
    if dist.get_world_size() == 1:
        return asked
    asks = torch.tensor([float(asked)], device=own_device())
    dist.all_reduce(asks)
    return bool(asks > 0)


def _forget_partitioned(module: nn.Module) -> None:
    """Take a model out of what ZeRO-3 keeps for the life of the process, which `destroy` overlooks.

    One list has every model ever partitioned at its bottom; one cache of a method has every coordinator and module in its keys; and
    torch's `linear` is DeepSpeed's own from the first engine on, which has no forward-mode derivative. Other engines lose nothing but
    memory: they fill the cache again, and torch's `linear` keeps gathered weights until the backward pass.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    FWD_MODULE_STACK[:] = [other for other in FWD_MODULE_STACK if other is not module]
    (cached,) = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release.__closure__
    cached.cell_contents.cache_clear()
    nn.functional.linear = InsertPostInitMethodToModuleSubClasses.linear_bk


def decays(parameter: Tensor) -> bool:
    """Whether weight decay is for it: matrices decay, vectors (norms and biases) do not."""
    return parameter.dim() >= 2


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
