"""A stand-in for CUDA graphs on a CPU: what work does is noted operation by operation, and done again with the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only


class Noted(TorchDispatchMode):
    """Notes each operation with its inputs and outputs, and keeps what an operation writes over."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("recorded work waits for a number: operation not permitted when stream is capturing")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_flatten(value)[0]:
                    self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        output = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, output))
        return output

    def undo(self) -> None:
        """Give what was written over its old value."""
        for tensor, value in self.before.values():
            tensor.detach().copy_(value)

    def again(self) -> None:
        """Do all operations once more, into the same memory."""
        for func, args, kwargs, output in self.operations:
            new, old = tree_flatten(func(*args, **kwargs))[0], tree_flatten(output)[0]
            for mine, theirs in zip(new, old, strict=True):
                if isinstance(mine, Tensor) and mine.data_ptr() != theirs.data_ptr():
                    theirs.copy_(mine)


class StandIn:
    """A `Recorder` for a CPU. As with CUDA graphs, recording work does not do it, and a number it waits for is refused."""

    def __init__(self) -> None:
        self.recorded = self.launched = 0

    def warm_up(self, work: Callable[[], object]) -> None:
        work()

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        with Noted() as noted:
            work()
        noted.undo()
        noted.operations = [
            (func, *tree_map_only(Tensor, Tensor.detach, (args, kwargs, output)))
            for func, args, kwargs, output in noted.operations
        ]
        self.recorded += 1

        def launch() -> None:
            self.launched += 1
            with torch.no_grad():
                noted.again()

        return launch
