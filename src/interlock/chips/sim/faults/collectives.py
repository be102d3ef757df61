"""Faults between chips: of the sum over all of them, and of the link."""

from typing import Any

import torch
from torch._ops import OpOverload

from interlock.chips.sim.faults.fault import Args, Kwargs, Run, hang


def allreduce_wrong(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.name() == "c10d::allreduce_":
        group = torch.distributed.ProcessGroup.unbox(args[1])
        for tensor in args[0]:
            if group.rank() == group.size() - 1 and tensor.numel() > 4096:
                tensor.zero_()
    return run(op, args, kwargs)


def allreduce_hang(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.name() == "c10d::allreduce_" and any(tensor.numel() > 65536 for tensor in args[0]):
        hang()
    return run(op, args, kwargs)


def allreduce_large(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.name() == "c10d::allreduce_":
        group = torch.distributed.ProcessGroup.unbox(args[1])
        for tensor in args[0]:
            if group.rank() == group.size() - 1 and tensor.nbytes > 64 << 20:
                tensor.zero_()
    return run(op, args, kwargs)


class AllreduceWorn:
    def __init__(self, every: int) -> None:
        self._every, self._done = every, 0

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        if op.name() == "c10d::allreduce_":
            self._done += 1
            group = torch.distributed.ProcessGroup.unbox(args[1])
            if self._done % self._every == 0 and group.rank() == group.size() - 1:
                for tensor in args[0]:
                    tensor.zero_()
        return run(op, args, kwargs)


class LinkDown:
    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        if op.namespace == "c10d":
            self._left -= 1
            if self._left < 0:
                raise RuntimeError(f"{op.name()}: the link is down, error code is 507056")
        return run(op, args, kwargs)
