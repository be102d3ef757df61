"""The processes that train one decoder together: how they meet, act as one, and end as one.

    torchrun starts `size` of them, each on a device of its own
    rank 0   recipe ── Learner.step ── broadcast(TrainStep(…)) ──┐ msgpack over gloo, no pickle
    rank 1…  run_rank ── Learner.step <──────────────────────────┘ (rank_loop.py)

A recipe runs on rank 0 alone. What it asks of the learner is first broadcast to the other ranks,
which then do the same, so that all of them enter every collective in the same order. Between
commands rank 0 sends heartbeats: a rank that waits for longer than the timeout knows that rank 0 is
gone, not busy. A process that dies closes its connections, and every other one stops with a
TrainingError.

`Ranks()` is one process alone: nothing is sent, and every method gives back what it was given.
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
from interlock.config.schema import LearnerSettings
from interlock.errors import ConfigError, TrainingError
from interlock.text import error_headline

Value = TypeVar("Value")
_DEFAULTS = LearnerSettings()
_HEARTBEATS = 20  # in one timeout: a few may be late without harm


def join(device_name: str, timeout_s: float = _DEFAULTS.collective_s) -> "Ranks":
    """Meet the other processes that torchrun started; alone where it started no other.

    Args:
        device_name: as settings name it; a process's own has LOCAL_RANK for its number.
        timeout_s: seconds that a collective, or a wait for rank 0, lasts at most.

    Raises:
        ConfigError: the device cannot be used, or has a number, which all processes of a machine
            would share.
        TrainingError: another process does not come.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        return Ranks(device.claim(device_name))
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
    return Ranks(place, rank=rank, size=size, mesh=mesh, timeout_s=timeout_s)


class Ranks:
    """The processes of one learner, seen from one of them; a context, whose exit leaves them.

        with join("cuda") as ranks:  # on every rank
            if ranks.rank > 0:
                run_rank(ranks)  # until rank 0 leaves
            else:
                decoder = sharding.shard(decoder, settings, ranks)
                learner = Learner(decoder, settings, optimizer, steps, ranks=ranks)

    rank, size: the number of this process, and of how many (torchrun's RANK and WORLD_SIZE).
    device: this process's; None: wherever the decoder is, of one process.
    mesh: torch's, over all ranks; None when alone.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        *,
        rank: int = 0,
        size: int = 1,
        mesh: DeviceMesh | None = None,
        timeout_s: float = _DEFAULTS.collective_s,
    ) -> None:
        self.device = device
        self.rank, self.size = rank, size
        self.mesh = mesh
        self._lock = threading.RLock()  # held for a command with all it entails, or for a heartbeat
        self._in_command = False
        self._broken: str | None = None
        self._left = threading.Event()
        self._heartbeat_s = timeout_s / _HEARTBEATS

    @property
    def load_device(self) -> torch.device:
        """Where rank 0 reads a model: the host's memory, unless the device takes all of it."""
        return torch.device("cpu") if self.size > 1 or self.device is None else self.device

    def __enter__(self) -> Self:
        if self.size > 1 and self.rank == 0:
            threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()
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
        with self._lock:
            if self.rank == 0 and self._broken is None:
                with suppress(RuntimeError):  # nobody is left to be told
                    self._send(b"")
        if self._broken is None:  # else to wait for the others could be in vain
            dist.destroy_process_group()

    @contextmanager
    def broadcast(self, command: msgspec.Struct) -> Iterator[None]:
        """From rank 0: have the other ranks do `command` (messages.py) while the body of the
        context does it here.

        Adds nothing on the other ranks, and nothing inside another command, which they do as a
        whole. Raises TrainingError when one of them is gone; then, or when the body fails, the
        ranks no longer agree, and every further command raises it.
        """
        if self.size == 1 or self.rank > 0:
            yield
            return
        with self._lock:
            if self._in_command:
                yield
                return
            if self._broken is not None:
                raise self._ended(self._broken)
            self._in_command = True
            try:
                with self.collective_errors():
                    self._send(msgspec.msgpack.encode(command))
                    yield
            except BaseException as error:
                self._broken = self._broken or _reason(error)
                raise
            finally:
                self._in_command = False

    def receive_command(self) -> bytes | None:
        """The next command of rank 0; None when it has left."""
        while True:
            length = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(length, 0)
            match length.item():
                case 0:
                    return None
                case -1:
                    continue  # a heartbeat
            content = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0)
            return content.numpy().tobytes()

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """Turns what a collective raises when another process is gone into a TrainingError."""
        try:
            yield
        except RuntimeError as error:
            # gloo raises plain RuntimeErrors, which begin with the place in its own source.
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            self._broken = _reason(error)
            raise self._ended(self._broken) from None

    def shard(self, batches: Sequence[Value]) -> Sequence[Value]:
        """This rank's share of the batches: every `size`th, from number `rank` on."""
        return batches[self.rank :: self.size]

    def needs_padding(self, batches: Sequence[Value]) -> bool:
        """Whether this rank's share is one batch short of rank 0's."""
        return 0 < len(batches) % self.size <= self.rank

    def all_gather(self, value: Value) -> list[Value]:
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

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum `tensor`, on the CPU or on the ranks' devices, over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def _send(self, content: bytes) -> None:
        dist.broadcast(torch.tensor([len(content)]), 0)
        if content:
            dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0)

    def _send_heartbeats(self) -> None:
        while not self._left.wait(self._heartbeat_s):
            if not self._lock.acquire(blocking=False):
                continue  # a command is on its way, and its collectives have their own deadline
            try:
                if self._left.is_set() or self._broken is not None:
                    return
                dist.broadcast(torch.tensor([-1]), 0)
            except RuntimeError as error:
                self._broken = _reason(error)
            finally:
                self._lock.release()

    def _ended(self, reason: str) -> TrainingError:
        return TrainingError(
            f"rank {self.rank} of {self.size}: the learner's processes are no longer together "
            f"({reason}); start all of them again and resume from the last checkpoint"
        )


def _reason(error: BaseException) -> str:
    """The first sentence of its first line, without the place in gloo's source."""
    return re.sub(r"^\[\S+\] ", "", error_headline(error)).split(". ")[0][:200]
