"""The real generator worker, which writes down what its engine does, step by step.

One line a step to $STEP_LOG: time.monotonic(), the sequences that got a token, and how many more
the worker holds.
"""

import os
import time
from typing import Any

from interlock.engine.portable.engine import PortableEngine
from interlock.processes.channel import Channel
from interlock.workers import worker


def serve(channel: Channel) -> None:
    plain = PortableEngine.step
    log = open(os.environ["STEP_LOG"], "a", buffering=1)  # noqa: SIM115, as long as the process

    def step(self: PortableEngine) -> Any:
        progress = plain(self)
        if progress:
            left = self.pending + sum(each.completion is not None for each in progress)
            log.write(f"{time.monotonic()} {len(progress)} {left - len(progress)}\n")
        return progress

    PortableEngine.step = step  # type: ignore[method-assign]
    worker.serve(channel)
