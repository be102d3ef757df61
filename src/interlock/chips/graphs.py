"""Work of a device recorded once and launched again as a whole, by torch.accelerator.Graph.

    run() ──record──> RecordedWork ──replay──> the same kernels on the same addresses

An accelerator computes a decoding step of a small model faster than the host can ask for its some
hundred kernels one by one. A recorded step is asked for at once. What is recorded are kernels and
addresses: inputs are copied to where they were, shapes are those that were, and what the host
decided on the way stays decided. Not run on an accelerator yet.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Generic, TypeVar

import torch

from interlock.chips import device

Out = TypeVar("Out")


class RecordedWork(Generic[Out]):
    """What `run` asks of a device. It must have run once before: libraries set up what they need.

    `out` is where each replay leaves the results. `beside`: another recording, of which no result
    is needed any more when this one is replayed; both then work in the same memory.
    """

    def __init__(
        self, place: torch.device, run: Callable[[], Out], beside: "RecordedWork[Out] | None" = None
    ) -> None:
        """Nothing is computed yet. Raises RuntimeError where something cannot be recorded."""
        pool = None if beside is None else beside._graph.pool()
        self._graph: Any = _graph(pool)
        with _stream(place):
            device.synchronize(place)  # what is queued elsewhere is no part of it
            self._graph.capture_begin()
            try:
                self.out = run()
            finally:
                self._graph.capture_end()

    def replay(self) -> Out:
        self._graph.replay()
        return self.out


@cache
def offered(place: torch.device) -> bool:
    """Whether torch can record the work of this device: tried, not read off versions."""
    return place.type != "cpu" and _tried(place)


def _tried(place: torch.device) -> bool:
    one = torch.zeros(1, device=place)
    try:
        one.add_(1)
        recorded = RecordedWork(place, lambda: one.add_(1))
        one.zero_()
        return recorded.replay().item() == 1.0 and recorded.replay().item() == 2.0
    except (AttributeError, NotImplementedError, RuntimeError):  # torch or its plugin has none
        return False


def _graph(pool: Any) -> Any:
    # Other threads may allocate meanwhile: a learner's, a server's.
    return torch.accelerator.Graph(pool=pool, capture_error_mode="thread_local")


def _stream(place: torch.device) -> AbstractContextManager[Any]:
    """Recording is for a stream that is not the usual one."""
    return torch.Stream(place)
