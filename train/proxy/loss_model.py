"""A model whose passes end in token losses, without ever holding all their logits where these would be large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastmix_data.units import format_count
from train.proxy.losses import ModelInputs, has_learned_positions, model_inputs, token_losses
from train.proxy.model import without_chatter
from train.proxy.recomputation import recomputed

# Of one pass in float32; with the gradient and what the loss keeps, a pass holds about three times as much. A GPU has room for more, and
# under ZeRO-3 every piece gathers the head anew.
LARGEST_LOGITS_BYTES_ON_GPU = 512 * 2**20
LARGEST_LOGITS_BYTES = LARGEST_LOGITS_BYTES_ON_GPU if torch.cuda.is_available() else 128 * 2**20
_CHECKED_LENGTH = 8


class LossModel(nn.Module):
    """A causal language model that returns token losses.

    Where logits of a pass would be large, tokens go through the model's head a piece of every sequence at a time, and the backward pass
    computes the logits of each piece anew. Pieces depend on what is the same for all passes and ranks, never on the number of sequences
    in a pass: under ZeRO-3 all ranks call the head equally often.

    Attributes:
        model: the model itself.
        piece: tokens of a sequence that go through the head at once; None where its logits are computed at once.
    """

    def __init__(self, model: Any, *, shape: tuple[int, int], whole_logits: bool = False) -> None:
        """Find out whether logits are to be cut, and can be.

        Args:
            model: in float32 on the CPU, as `build_proxy` makes it.
            shape: (B, T) of a pass at most.
            whole_logits: never cut them.
        """
        super().__init__()
        self.model = model
        self.with_positions = has_learned_positions(model)
        num_pieces = num_logits_pieces(model, shape=shape)
        is_cut = num_pieces > 1 and not whole_logits and ends_in_head(model)
        self.piece = -(-shape[1] // num_pieces) if is_cut else None

    def arguments(self, inputs: ModelInputs) -> dict[str, Tensor]:
        """Named arguments of the model for such inputs."""
        return model_inputs(inputs, with_positions=self.with_positions)

    def forward(self, labels_BT: Tensor, **arguments: Tensor) -> Tensor:
        """Token losses in nats, shape (B, T)."""
        if self.piece is None or labels_BT.shape[1] <= self.piece:
            return token_losses(self.model(**arguments).logits, labels_BT)
        base, head = _base_and_head(self.model)
        hidden_BTD = base(**arguments)[0]
        pieces = zip(hidden_BTD.split(self.piece, dim=1), labels_BT.split(self.piece, dim=1), strict=True)
        losses = recomputed(
            lambda hidden, labels: token_losses(head(hidden), labels),
            [(piece, {}) for piece in pieces],
            module=head,
        )
        return torch.cat(losses, dim=1)


def num_logits_pieces(model: Any, *, shape: tuple[int, int], on_gpu: bool = False) -> int:
    """How many pieces the logits of a pass of shape (B, T) would have to be cut into to be small; 1 where they are.

    Args:
        on_gpu: count as for a GPU, whatever this machine has.
    """
    largest = LARGEST_LOGITS_BYTES_ON_GPU if on_gpu else LARGEST_LOGITS_BYTES
    num_bytes: int = 4 * shape[0] * shape[1] * model.config.get_text_config().vocab_size
    return min(shape[1], -(-num_bytes // largest))


def whole_logits_remark(model: Any, *, shape: tuple[int, int]) -> str:
    """What is to be said of a model with large logits that cannot be cut; empty where they are small or can be.

    Args:
        shape: (B, T) of a pass.
    """
    if num_logits_pieces(model, shape=shape) == 1 or ends_in_head(model):
        return ""
    num_bytes = 4 * shape[0] * shape[1] * model.config.get_text_config().vocab_size
    return (
        f"{type(model).__name__} does more to its logits than its output layer: all of a pass, {format_count(num_bytes)}B in float32, are "
        "held at once; a smaller training.micro_batch makes them fewer"
    )


def ends_in_head(model: Any) -> bool:
    """Whether a model's logits are what its output layer makes of its last hidden state, to the bit; some scale or cap them, or add a bias.

    Seen on a few tokens; it leaves no gradient, random state or mode behind.
    """
    base, head = _base_and_head(model)
    if head is None or base is model:
        return False
    # A parameter beside the two, an added bias for instance, may start where it does nothing.
    inside = {id(parameter) for part in (base, head) for parameter in part.parameters()}
    if any(id(parameter) not in inside for parameter in model.parameters()):
        return False
    vocab_size = model.config.get_text_config().vocab_size
    tokens_BT = torch.randint(vocab_size, (2, _CHECKED_LENGTH), generator=torch.Generator().manual_seed(0))
    arguments = model_inputs(ModelInputs(tokens_BT), with_positions=has_learned_positions(model))
    random_state, was_training = torch.get_rng_state(), model.training
    model.eval()
    try:
        with torch.no_grad(), without_chatter():
            return torch.equal(head(base(**arguments)[0]), model(**arguments).logits)
    except Exception:  # of a model's own code, which need not be made for it
        return False
    finally:
        model.train(was_training)
        torch.set_rng_state(random_state)


def _base_and_head(model: Any) -> tuple[Any, Any]:
    """What makes hidden states, and the output layer."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model  # that has adapters in it
    return bare.base_model, bare.get_output_embeddings()
