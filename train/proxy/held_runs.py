"""Which runs of a proxy's parameters, masters and optimiser states a rank holds under each ZeRO stage, and how they are put back.

DeepSpeed's own checkpoints have a rank's flat buffers, which only as many ranks at the same stage can read. Here each parameter is named,
and a rank holds a run of its elements: all of them at stage 0, a part of them at the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.checkpoints.tensor_files import Runs, SavedTensors, equal_share

_MASTER, _BUFFER = "parameter", "buffer"
_PREFIX = "proxy"  # of their names in a checkpoint, where a run has others beside
_STEPS = "adam_steps"


@dataclass(frozen=True)
class _HeldRun:
    """A run of a parameter's elements as the optimiser of this rank moves them.

    Attributes:
        first, numel: of the parameter's elements.
        moved: the tensor that the optimiser moves: the parameter, or a buffer in which this run begins at `offset`.
    """

    name: str
    first: int
    numel: int
    moved: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """Its elements of a tensor of the shape of `moved`, flat and not copied."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def held_runs(module: Any, *, wrapper: Any, optimizer: torch.optim.Optimizer, stage: int) -> Iterator[_HeldRun]:
    """What the optimiser of this rank moves, by parameter.

    Args:
        wrapper: DeepSpeed's optimiser around `optimizer`.
    """
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            yield _HeldRun(name, 0, parameter.numel(), parameter, 0)
        elif stage == 3:
            group, offset, size = wrapper.grad_position[wrapper.get_param_id(parameter)]
            first = size * wrapper._get_param_partition_rank(parameter)
            numel = min(size, parameter.ds_numel - first)  # the last ranks' parts are filled up to the size of the others
            if numel > 0:
                yield _HeldRun(name, first, numel, wrapper.fp32_partitioned_groups_flat[group], offset)
        elif (mapping := parameter._hp_mapping) is not None:
            (moved,) = optimizer.param_groups[mapping.param_group_index]["params"]
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield _HeldRun(name, here.start, here.numel, moved, there.start)


def runs_to_save(
    module: nn.Module, *, wrapper: Any, optimizer: torch.optim.Optimizer, stage: int, rank: int, world_size: int
) -> Runs:
    """This rank's runs of parameters and of the optimiser's states, not copied.

    Args:
        rank, world_size: by which what all ranks hold is shared.
    """
    runs: dict[str, tuple[int, Tensor]] = {}
    for held in held_runs(module, wrapper=wrapper, optimizer=optimizer, stage=stage):
        for kind, tensor in _kinds(held.moved, optimizer).items():
            values = held.of(tensor)
            runs[_name(kind, held.name)] = (
                equal_share(values, rank=rank, world_size=world_size) if stage == 0 else (held.first, values)
            )
    for name, buffer in module.named_buffers():
        runs[_name(_BUFFER, name)] = equal_share(buffer, rank=rank, world_size=world_size)
    return runs


def counters(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Steps that Adam has made, the same on all ranks."""
    steps = [float(state["step"]) for state in optimizer.state.values() if "step" in state]
    return {_STEPS: max(steps, default=0.0)}


def put_back(
    module: nn.Module,
    saved: SavedTensors,
    *,
    wrapper: Any,
    optimizer: torch.optim.Optimizer,
    stage: int,
    counted: Mapping[str, float],
) -> None:
    """Restore what `runs_to_save` and `counters` gave on any ranks at any stage, on all ranks together.

    Raises:
        CorruptArtefactError: the checkpoint lacks some of it.
    """
    kinds = {name.split("/")[1] for name in saved if name.startswith(f"{_PREFIX}/")} - {_MASTER, _BUFFER}
    if stage == 3:
        wrapper.checkpoint_event_prologue()
    with torch.no_grad():
        for held in held_runs(module, wrapper=wrapper, optimizer=optimizer, stage=stage):
            _with_states(held.moved, optimizer, kinds, steps=counted[_STEPS])
            for kind, tensor in _kinds(held.moved, optimizer).items():
                values = saved.read(_name(kind, held.name), held.first, held.first + held.numel)
                held.of(tensor).copy_(values)
        if stage == 3:
            # Masters are in place; parameters are made from them as at the end of a step.
            for group in range(len(wrapper.fp32_partitioned_groups_flat)):
                wrapper._reassign_or_swap_out_partitioned_parameters(group)
            wrapper.checkpoint_event_epilogue()
        else:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    whole = saved.read(_name(_MASTER, name), 0, parameter.numel())
                    parameter.copy_(whole.view_as(parameter))
        for name, buffer in module.named_buffers():
            buffer.copy_(saved.read(_name(_BUFFER, name), 0, buffer.numel()).view_as(buffer))


def _kinds(moved: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensor that is moved, and the optimiser's states of each of its elements."""
    states = optimizer.state.get(moved, {})
    return {_MASTER: moved} | {
        name: state
        for name, state in states.items()
        if isinstance(state, Tensor) and state.shape == moved.shape and name != "step"
    }


def _with_states(moved: Tensor, optimizer: torch.optim.Optimizer, kinds: set[str], *, steps: float) -> None:
    """Have the optimiser know the states of a tensor, as its first step would."""
    state = optimizer.state[moved]
    if not state and kinds:
        own = isinstance(optimizer, torch.optim.AdamW)  # DeepSpeed's for hosts count in whole numbers
        state["step"] = torch.tensor(0.0, device=moved.device if optimizer.defaults.get("fused") else None) if own else 0
        for kind in sorted(kinds):
            state[kind] = torch.zeros_like(moved, requires_grad=False)
    if "step" in state:
        if isinstance(state["step"], Tensor):
            state["step"].fill_(steps)
        else:
            state["step"] = type(state["step"])(steps)


def _name(kind: str, name: str) -> str:
    return f"{_PREFIX}/{kind}/{name}"
