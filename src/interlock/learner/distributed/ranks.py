"""The processes that train one decoder together: how they meet, act as one, and end as one.

    torchrun starts `size` of them, each on a device of its own
    rank 0   recipe ── Learner.step ── lead(Step(…)) ──┐ msgpack over gloo, no pickle
    rank 1…  follow() ── Learner.step <────────────────┘ (follow.py)

A recipe runs on rank 0 alone. What it asks of the learner is first told to the other ranks, which
then do the same, so that all of them enter every collective in the same order. Between commands
rank 0 sends a pulse: a rank that waits for longer than the timeout knows that rank 0 is gone, not
busy. A process that dies closes its connections, and every other one stops with a TrainingError.

`World()` is one process alone: nothing is sent, and every method gives back what it was given.
"""

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from interlock.chips import device, vendors
from interlock.errors import ConfigError, TrainingError
from interlock.text import error_headline

Value = TypeVar("Value")
_TIMEOUT_S = 600.0
# Pulses in one timeout: a few may be late without harm.
_PULSES = 20


def join(device_name: str, timeout_s: float = _TIMEOUT_S) -> "World":
    """Meet the other processes that torchrun started; alone where it started no other.

    The device of a process is `device_name` with the index LOCAL_RANK. No collective, and no wait
    for rank 0, lasts longer than `timeout_s`. Raises ConfigError when the device cannot be used or
    names an index that all processes of a machine would share; TrainingError when one does not
    come.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        return World(device.claim(device_name))
    kind, _, index = device_name.partition(":")
    if not vendors.of(kind).numbered:
        raise ConfigError(f"learner.device {device_name!r} is one device, for one process")
    if index and kind != "cpu":
        raise ConfigError(
            f"learner.device {device_name!r} gives every process the same device; write {kind!r}"
        )
    if kind != "cpu":
        device_name = f"{kind}:{os.environ.get('LOCAL_RANK', str(rank))}"
    place = device.claim(device_name)
    try:
        dist.init_process_group(device.backend(place), timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"rank {rank} of {size} could not meet the others: {_reason(error)}"
        ) from None
    mesh = init_device_mesh(place.type, (size,))
    return World(place, rank=rank, size=size, mesh=mesh, timeout_s=timeout_s)


class World:
    """`size` processes of which this is number `rank`, on `device`; a context that leaves them.

    Leaving it on rank 0 lets the others return from `follow`. `mesh` is None when alone.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        *,
        rank: int = 0,
        size: int = 1,
        mesh: DeviceMesh | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self.device = device
        self.rank, self.size = rank, size
        self.mesh = mesh
        self._turn = threading.RLock()  # a command with all it entails, or one pulse
        self._leading = False
        self._broken: str | None = None
        self._left = threading.Event()
        self._pulse_s = timeout_s / _PULSES

    @property
    def loading(self) -> torch.device:
        """Where rank 0 reads a model: the host's memory, unless the device takes all of it."""
        return torch.device("cpu") if self.size > 1 or self.device is None else self.device

    def __enter__(self) -> Self:
        if self.size > 1 and self.rank == 0:
            threading.Thread(target=self._beat, name="pulse", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.size == 1:
            return
        self._left.set()
        with self._turn:
            if self.rank == 0 and self._broken is None:
                with suppress(RuntimeError):  # nobody is left to be told
                    self._send(b"")
        if self._broken is None:  # else to wait for the others could be in vain
            dist.destroy_process_group()

    @contextmanager
    def lead(self, command: msgspec.Struct) -> Iterator[None]:
        """Have the other ranks do `command` while the body of the context does it here.

        On the other ranks, and inside another command, which they do as a whole, it adds nothing.
        Raises TrainingError when one of them is gone; then, or when the body fails, the ranks no
        longer agree, and no further command is taken.
        """
        if self.size == 1 or self.rank > 0:
            yield
            return
        with self._turn:
            if self._leading:
                yield
                return
            if self._broken is not None:
                raise self._ended(self._broken)
            self._leading = True
            try:
                with self.linked():
                    self._send(msgspec.msgpack.encode(command))
                    yield
            except BaseException as error:
                self._broken = self._broken or _reason(error)
                raise
            finally:
                self._leading = False

    def receive(self) -> bytes | None:
        """The next command of rank 0; None when it has left."""
        while True:
            length = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(length, 0)
            match length.item():
                case 0:
                    return None
                case -1:
                    continue  # a pulse
            content = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0)
            return content.numpy().tobytes()

    @contextmanager
    def linked(self) -> Iterator[None]:
        """Turns what a collective raises when another process is gone into a TrainingError."""
        try:
            yield
        except RuntimeError as error:
            # gloo raises plain RuntimeErrors, which begin with the place in its own source.
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            self._broken = _reason(error)
            raise self._ended(self._broken) from None

    def dealt(self, batches: Sequence[Value]) -> Sequence[Value]:
        """This rank's share, dealt round."""
        return batches[self.rank :: self.size]

    def lacks(self, batches: Sequence[Value]) -> bool:
        """Whether this rank's share is one less than that of rank 0."""
        return 0 < len(batches) % self.size <= self.rank

    def everyone(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order; of a type that msgspec encodes."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(msgspec.msgpack.encode(value)), dtype=torch.uint8)
        lengths = list(torch.zeros(self.size, 1, dtype=torch.int64))
        dist.all_gather(lengths, torch.tensor([len(content)]))
        padded = content.new_zeros(int(max(lengths)))
        padded[: len(content)] = content
        found = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(found, padded)
        return [
            msgspec.msgpack.decode(each[: int(length)].numpy().tobytes(), type=type(value))
            for each, length in zip(found, lengths, strict=True)
        ]

    def add_up(self, tensor: Tensor) -> None:
        """Sum `tensor`, on the CPU or on the ranks' devices, over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def _send(self, content: bytes) -> None:
        dist.broadcast(torch.tensor([len(content)]), 0)
        if content:
            dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0)

    def _beat(self) -> None:
        while not self._left.wait(self._pulse_s):
            if not self._turn.acquire(blocking=False):
                continue  # a command is on its way, and its collectives have their own deadline
            try:
                if self._left.is_set() or self._broken is not None:
                    return
                dist.broadcast(torch.tensor([-1]), 0)
            except RuntimeError as error:
                self._broken = _reason(error)
            finally:
                self._turn.release()

    def _ended(self, reason: str) -> TrainingError:
        return TrainingError(
            f"rank {self.rank} of {self.size}: the learner's processes are no longer together "
            f"({reason}); start all of them again and resume from the last checkpoint"
        )


def _reason(error: BaseException) -> str:
    """The first sentence of its first line, without the place in gloo's source."""
    return re.sub(r"^\[\S+\] ", "", error_headline(error)).split(". ")[0][:200]
