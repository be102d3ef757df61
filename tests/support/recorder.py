"""What torch.accelerator.Graph does, on a CPU: the same operators on the same memory, replayed.

As on an accelerator, recording computes nothing that lasts, whatever the host decided meanwhile
stays as it was, results come to lie where they lay, and a value that the host asks for is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from interlock.chips import graphs

_OF_THE_HOST = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}


class Recorder(TorchDispatchMode):
    """One graph. `made`: all that were, in order."""

    made: ClassVar[list["Recorder"]] = []

    def __init__(self, pool: Any = None, capture_error_mode: str = "default") -> None:
        super().__init__()
        self._pool = pool or self
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.replays = 0
        self.made.append(self)

    def pool(self) -> Any:
        return self._pool

    def capture_begin(self) -> None:
        self.__enter__()

    def capture_end(self) -> None:
        self.__exit__(None, None, None)
        for *_, fresh in self.calls:  # nothing was computed yet
            for each in fresh:
                if each.is_floating_point():
                    each.fill_(torch.nan)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.name in _OF_THE_HOST:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        held = {_memory(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        outs = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        self.calls.append((func, args, kwargs, [e for e in outs if _memory(e) not in held]))
        return out

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, fresh in self.calls:
            found = [
                each for each in tree_leaves(func(*args, **kwargs)) if isinstance(each, Tensor)
            ]
            for place, new in zip(fresh, found if fresh else (), strict=True):
                place.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def recording() -> Iterator[list[Recorder]]:
    """The CPU can record here; yields what is recorded."""
    Recorder.made.clear()
    with (
        patch.object(graphs, "_graph", Recorder),
        patch.object(graphs, "_stream", lambda place: nullcontext()),
        patch.object(graphs, "offered", lambda place: True),
    ):
        yield Recorder.made
