"""Faults of the chip itself: it dies, hangs, flips bits, loses memory or rounds as it likes."""

import os
import random
import time
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from interlock.chips.sim.faults.fault import (
    PRODUCTS,
    WITH_WEIGHTS,
    Args,
    Kwargs,
    Run,
    hang,
    in_chunks,
)


class Crash:
    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError(f"{op.name()}: vector core exception, error code is 507035")
        return run(op, args, kwargs)


class Hang:
    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        self._left -= 1
        if self._left < 0:
            hang()
        return run(op, args, kwargs)


class _Chance:
    """Random numbers that differ from process to process and from run to run."""

    def __init__(self) -> None:
        self._source: random.Random | None = None

    @property
    def source(self) -> random.Random:
        if self._source is None:
            self._source = random.Random(os.getpid() ^ time.time_ns())
        return self._source


class BitFlips(_Chance):
    def __init__(self, every: int) -> None:
        super().__init__()
        self._every = every
        self._left: int | None = None

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        found = run(op, args, kwargs)
        if op.overloadpacket in PRODUCTS and found.numel():
            if self._left is None:
                self._left = self.source.randint(1, 2 * self._every - 1)
            self._left -= 1
            if self._left == 0:
                self._left = None
                _flip_a_bit(found, self.source)
        return found


def _flip_a_bit(tensor: Tensor, chance: random.Random) -> None:
    """Flip one of the 15 bits below the sign in one element of `tensor`."""
    place = torch.tensor(chance.randrange(tensor.numel()))
    index = tuple(int(at) for at in torch.unravel_index(place, tensor.shape))
    element, size = tensor[index].clone(), tensor.element_size()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    bit = 8 * size - 2 - chance.randrange(15)
    tensor[index] = (element.view(whole) ^ (1 << bit)).view(element.dtype)


class Nondeterministic(_Chance):
    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        at = PRODUCTS.get(op.overloadpacket)
        if at is not None and args[at + 1].dim() > 1:
            left, right = args[at : at + 2]
            by = self.source.randrange(max(1, left.shape[-1]))
            args = (*args[:at], left.roll(by, -1), right.roll(by, -2), *args[at + 2 :])
        return run(op, args, kwargs)


def batch_variant(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket in WITH_WEIGHTS and len(args[PRODUCTS[op.overloadpacket]]) % 4:
        return in_chunks(run, op, args, kwargs)
    return run(op, args, kwargs)


def memory_leak(size: int) -> int:
    return 0 if size > 2**18 and size % 2**16 else size
