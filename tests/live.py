"""Counting the bytes of tensors that are alive at once: what a computation needs beyond what it is given."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Within it, `peak` is the largest sum of the bytes of all tensors that were made since. Views count with what they
    are views of; mapped files, parameters and other tensors from before do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: dict[int, list[int]] = {}
        """Bytes, and how many tensors there are of them, by address."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {address(tensor) for tensor in tree_leaves((args, kwargs)) if is_stored(tensor)}
        for tensor in tree_leaves(result):
            if is_stored(tensor) and (address(tensor) in self.held or address(tensor) not in given):
                self.hold(tensor)
        return result

    def hold(self, tensor: Tensor) -> None:
        place, size = address(tensor), tensor.untyped_storage().nbytes()
        entry = self.held.setdefault(place, [size, 0])
        if not entry[1]:
            self.now += size
            self.peak = max(self.peak, self.now)
        entry[1] += 1
        weakref.finalize(tensor, self.drop, place)

    def drop(self, place: int) -> None:
        entry = self.held[place]
        entry[1] -= 1
        if not entry[1]:
            self.now -= entry[0]
            del self.held[place]


def is_stored(tensor: Any) -> bool:
    """Whether it is a tensor with values in main memory."""
    return isinstance(tensor, Tensor) and tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() > 0


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
