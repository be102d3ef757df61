"""What the device can do at best, measured on it: products and copies."""

import math
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from interlock.chips import device

_REPEATS = 5
_PRODUCT_S, _COPY_S = 0.02, 0.005  # sizes grow until one takes so long
_SIDES = (512, 1024, 2048, 4096, 8192)
_BLOCKS = tuple(1 << power for power in range(22, 29))  # elements of float32


class Bounds(msgspec.Struct, frozen=True):
    """Of one device in one dtype."""

    flops: float  # multiplications and additions a second, of the best square product
    bytes: float  # read and written a second, by the best copy


def measured(place: torch.device, dtype: torch.dtype) -> Bounds:
    """Take about a second of the device's time."""
    flops = moved = 0.0
    for side in _SIDES:
        x = torch.ones(side, side, dtype=dtype, device=place) / side
        took = seconds(place, lambda x=x: x @ x.mT, _REPEATS)  # type: ignore[misc]
        flops = max(flops, 2 * side**3 / took)
        if took > _PRODUCT_S:
            break
    for block in _BLOCKS:
        if 8 * block > device.room(place) // 4:
            break
        source, target = (torch.ones(block, device=place) for _ in range(2))
        took = seconds(place, lambda s=source, t=target: t.copy_(s), _REPEATS)  # type: ignore[misc]
        moved = max(moved, 8 * block / took)
        if took > _COPY_S:
            break
    return Bounds(flops, moved)


def seconds(place: torch.device, run: Callable[[], Any], repeats: int) -> float:
    """The best time of one call; one goes before, uncounted."""
    run()
    best = math.inf
    for _ in range(repeats):
        device.synchronize(place)
        start = time.perf_counter()
        run()
        device.synchronize(place)
        best = min(best, time.perf_counter() - start)
    return best
