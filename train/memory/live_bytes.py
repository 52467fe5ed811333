"""How many bytes of tensors are alive, counted as operations make them; of fake tensors too, which take none."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors that operations within the block return.

    Attributes:
        live: bytes that are alive now.
        peak: most bytes that were alive at once; may be set to begin anew.
    """

    def __init__(self, *, beside: Iterable[Tensor] = ()) -> None:
        """Start with nothing.

        Args:
            beside: tensors from before, which do not count, nor do views of them.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._beside = [tensor.untyped_storage() for tensor in beside]  # held, for their names not to pass to others
        self._counted = {id(storage) for storage in self._beside}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do the operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # DeepSpeed keeps tensors without memory beside its own, for their shapes.
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        # The same Python object for as long as the memory lives, however many tensors share it.
        storage = tensor.untyped_storage()
        if (key := id(storage)) in self._counted:
            return
        num_bytes = storage.nbytes()
        self._counted.add(key)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._counted.discard(key)
        self.live -= num_bytes
