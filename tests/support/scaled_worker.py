"""A generator worker whose weights are $SCALE times what they should be."""

import os

import torch

from interlock.engine.base import Engine
from interlock.engine.portable import engine
from interlock.processes.channel import Channel
from interlock.workers import worker


def serve(channel: Channel) -> None:
    scale, opened = float(os.environ.get("SCALE", "1")), engine.open_engine

    def scaled(*given: object) -> Engine:
        found = opened(*given)  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor in found.decoder.tensors().values():
                tensor.mul_(scale)
        return found

    engine.open_engine = scaled  # type: ignore[assignment]
    worker.serve(channel)
