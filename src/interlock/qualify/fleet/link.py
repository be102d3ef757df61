"""One of the processes that try a link between nodes: do sums come out exact, and how fast is it?

    LinkPlan ──> meet at rank 0's store ──> sums, pings, transfers both ways ──> LinkMeasured
                                            └─ LinkStep before each, so that a hang has a place

Two take part, or one of each node at once; with more than two, only sums are made. Operands are
small whole numbers: their sums are the same in every order and every dtype, so any difference is an
error. Who listens too long is killed by its node.

Legend: n elements
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from interlock.chips import device
from interlock.processes.channel import Channel
from interlock.qualify.fleet.talk import (
    LinkBroken,
    LinkMeasured,
    LinkPlan,
    LinkStep,
    LinkWord,
    Listening,
)
from interlock.records.coding import from_bytes, to_bytes
from interlock.text import described

_DTYPES = (torch.float32, torch.bfloat16, torch.int64)
_SIZES = (1, 1023, 65537)
_MOST_EXACT = 256  # up to where bfloat16 holds all whole numbers
_PINGS = 30
_LONG_S = 0.3  # a transfer that took so long is a measurement
_AGAIN = 2  # more transfers of the last size: the best counts
_FIRST_BYTES = 1 << 20
_SIOCGIFADDR = 0x8915  # Linux's question for an interface's address
# Longer than the node waits: a hang shall be told from an error.
_SLACK = timedelta(minutes=5)


def serve(channel: Channel) -> None:
    """Take part once."""
    data = channel.receive()
    if data is None:
        return
    plan = from_bytes(data, LinkPlan)

    def tell(word: LinkWord) -> None:
        channel.send(to_bytes(word))

    try:
        rank = _LinkRank(plan, tell)
        tell(rank.measured())
    except Exception as error:
        tell(LinkBroken(described(error, 300)))


class _LinkRank:
    """One who takes part."""

    def __init__(self, plan: LinkPlan, tell: Callable[[LinkWord], None]) -> None:
        torch.set_num_threads(1)
        self.plan, self._tell = plan, tell
        self.place = device.claim(plan.device)
        backend = device.backend(self.place)
        if name := interface(plan.address):
            os.environ["GLOO_SOCKET_IFNAME"] = name
        store = self._store()
        timeout = timedelta(seconds=plan.seconds) + _SLACK
        dist.init_process_group(
            backend, store=store, rank=plan.rank, world_size=plan.world_size, timeout=timeout
        )
        self._off, self._worst = 0.0, ""
        # Of the operands: sums are at most _MOST_EXACT, in fleets of up to 170 nodes.
        self._period = max(2, min(13, _MOST_EXACT * 2 // (3 * plan.world_size)))

    def _store(self) -> dist.Store:
        timeout = timedelta(seconds=self.plan.seconds)
        if self.plan.store is not None:
            host, port = self.plan.store
            return dist.TCPStore(host, port, is_master=False, timeout=timeout)
        store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout
        )
        self._tell(Listening(store.port))
        return store

    def measured(self) -> LinkMeasured:
        for dtype in _DTYPES:
            for n in _SIZES:
                self._sum(dtype, n)
        if self.plan.world_size > 2:
            n = min(self.plan.largest, 4 * _FIRST_BYTES) // 4
            seconds = self._sum(torch.float32, n)
            return LinkMeasured(self._off, self._worst, sum_s=seconds)
        latency = self._latency()
        size = min(_FIRST_BYTES, self.plan.largest)
        while True:
            up, down = self._transfer(size, 0), self._transfer(size, 1)
            long = size / min(up, down) >= _LONG_S
            if not self._agree(int(not long and 4 * size <= self.plan.largest)):
                break
            size *= 4
        for _ in range(_AGAIN):
            up = max(up, self._transfer(size, 0))
            down = max(down, self._transfer(size, 1))
        return LinkMeasured(self._off, self._worst, latency, up, down)

    def _agree(self, number: int) -> int:
        """Rank 0's number, on all ranks."""
        told = torch.full((1,), float(number), device=self.place)
        dist.broadcast(told, 0)
        return int(told.item())

    def _operand(self, dtype: torch.dtype, n: int, factor: int) -> Tensor:
        """[n] on the CPU."""
        period = (torch.arange(self._period) * factor).to(dtype)
        return period.repeat(-(-n // self._period))[:n]

    def _sum(self, dtype: torch.dtype, n: int) -> float:
        """-> seconds. Ranks have their operand once, or twice every second one."""
        step = f"the sum of {n} {str(dtype).removeprefix('torch.')}"
        self._tell(LinkStep(step))
        x = self._operand(dtype, n, 1 + self.plan.rank % 2).to(self.place)
        began = time.perf_counter()
        dist.all_reduce(x)
        device.synchronize(self.place)
        seconds = time.perf_counter() - began
        world = self.plan.world_size
        self._compare(step, x, self._operand(dtype, n, world + world // 2))
        return seconds

    def _latency(self) -> float:
        """Half of the shortest way there and back, in seconds."""
        self._tell(LinkStep("pings"))
        other = 1 - self.plan.rank
        token = torch.zeros(1, device=self.place)
        best = float("inf")
        for _ in range(_PINGS):
            began = time.perf_counter()
            if self.plan.rank == 0:
                dist.send(token, other)
                dist.recv(token, other)
            else:
                dist.recv(token, other)
                dist.send(token, other)
            token.item()  # waits for the device
            best = min(best, time.perf_counter() - began)
        return best / 2

    def _transfer(self, size: int, sender: int) -> float:
        """Bytes a second from `sender` to the other, as rank 0 sees it, an answer included."""
        n = size // 4
        sent = self._operand(torch.float32, n, 1)
        step = f"a transfer of {size / 2**20:g} MiB {'back' if sender else 'there'}"
        self._tell(LinkStep(step))
        x = (sent if self.plan.rank == sender else torch.zeros(n)).to(self.place)
        token, other = torch.zeros(1, device=self.place), 1 - self.plan.rank
        self._agree(0)
        began = time.perf_counter()
        if self.plan.rank == sender:
            dist.send(x, other)
            dist.recv(token, other)
        else:
            dist.recv(x, other)
            dist.send(token, other)
        token.item()
        x[-1].item()
        seconds = time.perf_counter() - began
        if self.plan.rank != sender:
            self._compare(step, x, sent)
        return size / seconds

    def _compare(self, step: str, found: Tensor, expected: Tensor) -> None:
        difference = (found.cpu() - expected).double().abs()
        off = difference.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()
        if off > self._off:
            self._off, self._worst = off, step


def interface(address: str) -> str:
    """The name of the interface that has an IPv4 address, which gloo shall use; "": not found."""
    if sys.platform != "linux":
        return ""
    import fcntl

    try:
        wanted = socket.gethostbyname(address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            for _, name in socket.if_nameindex():
                question = struct.pack("256s", name[:15].encode())
                try:
                    answer = fcntl.ioctl(asked, _SIOCGIFADDR, question)
                except OSError:  # it has none
                    continue
                if socket.inet_ntoa(answer[20:24]) == wanted:
                    return name
    except OSError:
        pass
    return ""
