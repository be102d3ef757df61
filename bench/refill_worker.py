"""The real generator worker for bench/refill.py, which writes down what its engine does.

To $STEP_LOG, one a line, with time.monotonic():

    step BEGIN END COUNT CPU     COUNT sequences got a token; seconds of the process until END
    done PROBLEM WHEN            the last sequence of a problem was finished
"""

import os
import time
from collections import Counter
from typing import Any

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.processes.channel import Channel
from interlock.workers import worker


def serve(channel: Channel) -> None:
    plain_step, plain_add = PortableEngine.step, PortableEngine.add
    log = open(os.environ["STEP_LOG"], "a", buffering=1)  # noqa: SIM115, as long as the process
    problems: dict[str, str] = {}
    left: Counter[str] = Counter()

    def add(self: PortableEngine, name: str, request: Request) -> None:
        plain_add(self, name, request)
        problems[name], left[name] = request.problem_id, request.completions

    def step(self: PortableEngine) -> Any:
        begin = time.monotonic()
        progress = plain_step(self)
        end = time.monotonic()
        if progress:
            log.write(f"step {begin} {end} {len(progress)} {time.process_time()}\n")
        for each in progress:
            left[each.name] -= each.completion is not None
            if not left[each.name] and not each.name.startswith("canary"):
                log.write(f"done {problems[each.name]} {end}\n")
        return progress

    PortableEngine.step, PortableEngine.add = step, add  # type: ignore[method-assign]
    worker.serve(channel)
