"""Faults of the software around a chip: operators that it lacks, or leaves to the CPU."""

import time
import warnings
from typing import Any

from torch._ops import OpOverload, OpOverloadPacket

from interlock.chips.sim.faults.fault import Args, Kwargs, Run

_LAUNCH = 4e-5  # seconds that the smallest operator takes


def missing(packet: OpOverloadPacket, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket is packet:
        raise NotImplementedError(
            f"Could not run '{op.name()}' with arguments from the 'PrivateUse1' backend. This "
            "could be because the operator doesn't exist for this backend."
        )
    return run(op, args, kwargs)


def slow_fallback(
    packet: OpOverloadPacket, times: int, run: Run, op: OpOverload, args: Args, kwargs: Kwargs
) -> Any:
    if op.overloadpacket is not packet:
        return run(op, args, kwargs)
    warnings.warn(
        f"The operator '{op.name()}' is not currently supported on the NPU backend and will fall "
        "back to run on the CPU. This may have performance implications.",
        stacklevel=2,
    )
    start = time.perf_counter()
    found = run(op, args, kwargs)
    time.sleep((times - 1) * max(time.perf_counter() - start, _LAUNCH))
    return found
