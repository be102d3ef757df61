"""A generator worker that logs a line for each step, as vLLM's does for itself."""

import logging
from typing import Any

from interlock.engine.portable.engine import PortableEngine
from interlock.processes.channel import Channel
from interlock.workers import worker


def serve(channel: Channel) -> None:
    plain = PortableEngine.step
    logging.basicConfig(level=logging.INFO)

    def step(self: PortableEngine) -> Any:
        logging.info("a step with %d running", self.pending)
        return plain(self)

    PortableEngine.step = step  # type: ignore[method-assign]
    worker.serve(channel)
