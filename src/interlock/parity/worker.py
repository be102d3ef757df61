"""One side of a comparison: an engine in a process, and in an environment, of its own.

    channel ── request ──> handle ── reply ──> channel

It is a child (processes/child.py), does one thing at a time, and ends with its coordinator. What
the user can mend, and what an engine says of itself, is a reply, Failed; anything else ends the
process, with its traceback in the log.
"""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from interlock.engine.portable.engine import PortableEngine
from interlock.errors import ConfigError, InterlockError, TrainingError
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.parity import operators, protocol, trace
from interlock.parity.protocol import (
    Applied,
    Apply,
    Generate,
    Generated,
    Held,
    Open,
    Opened,
    Record,
    Recorded,
    Reply,
    Score,
    Scored,
    Take,
    Taken,
    Trace,
    Traced,
    Weighed,
    Weights,
)
from interlock.processes.channel import Channel
from interlock.sync.codec import tensor_digest
from interlock.text import error_headline
from interlock.workers.generator import Generator, open_generator
from interlock.workers.protocol import failed


def serve(channel: Channel) -> None:
    """Answer requests until the coordinator is gone."""
    side = Side()
    while (data := channel.receive()) is not None:
        channel.send(protocol.encode(side.handle(protocol.request(data))))


class Side:
    def __init__(self) -> None:
        self._generator: Generator | None = None
        self._model = Path()
        self._calls: list[operators.Call] = []

    def handle(self, request: protocol.Request) -> Reply:
        try:
            match request:
                case Open():
                    return self._open(request)
                case Weights():
                    return self._weights()
                case Generate():
                    return self._generate(request)
                case Score():
                    return self._score(request)
                case Trace():
                    decoder = self._decoder(request.model, request.dtype)
                    points, sketches = trace.sketched(decoder, request.text)
                    return Traced(points, operators.packed({"sketches": sketches}))
                case Record():
                    decoder = self._decoder(request.model, request.dtype)
                    self._calls = trace.recorded(decoder, request.text, request.where)
                    return Recorded([call.title for call in self._calls])
                case Take():
                    return Taken(self._calls[request.index].operator())
                case Apply():
                    return self._apply(request)
        except InterlockError as error:
            return failed(error, [0])

    @property
    def _opened(self) -> Generator:
        assert self._generator is not None, "a side is opened first"
        return self._generator

    def _open(self, asked: Open) -> Opened:
        self._model = Path(asked.model)
        self._generator = open_generator(asked.settings, self._model, None, asked.name)
        engine = self._generator.engine
        return Opened(engine.description, engine.device, engine.dtype)

    def _weights(self) -> Weighed:
        shown = self._opened.engine.held()
        if shown is None:
            return Weighed(None)
        with ExitStack() as opened:
            files = _files(self._model, opened)
            return Weighed({name: _compared(name, x.cpu(), files.get(name)) for name, x in shown})

    def _generate(self, asked: Generate) -> Generated:
        return Generated(
            self._opened.generate(asked.problems, asked.completions, asked.sampling, asked.seed)
        )

    def _score(self, asked: Score) -> Scored:
        scored = [self._opened.engine.score(text).logprobs for text in asked.texts]
        if not all(math.isfinite(value) for text in scored for value in text):
            raise TrainingError("its log-probabilities of given tokens are not finite")
        return Scored(scored)

    def _decoder(self, model: str, dtype: str) -> Decoder:
        if dtype:
            return load_decoder(Path(model), getattr(torch, dtype), torch.device("cpu"))
        engine = self._opened.engine
        if not isinstance(engine, PortableEngine):
            raise ConfigError(
                f"{engine.description} does not show its layers; bisect torch engines only"
            )
        return engine.decoder

    def _apply(self, asked: Apply) -> Applied:
        place = torch.device("cpu") if self._generator is None else self._place()
        try:
            outputs = operators.applied(asked.operator, place, asked.exact)
        except (RuntimeError, NotImplementedError) as error:  # what a device cannot do is evidence
            return Applied(operators.packed({}), error_headline(error))
        return Applied(operators.packed(outputs), "")

    def _place(self) -> torch.device:
        return self._decoder("", "").embed.device


def _files(model: Path, opened: ExitStack) -> dict[str, Any]:
    """Which safetensors file of the model holds each tensor; they stay open as long as `opened`."""
    found: dict[str, Any] = {}
    for path in sorted(model.glob("*.safetensors")):
        file = opened.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(file.keys(), file)
    return found


def _compared(name: str, held: Tensor, file: Any) -> Held:
    """Equal means: the bits that the file's values have in the engine's own dtype."""
    stored = None if file is None else file.get_tensor(name)
    if stored is None or stored.shape != held.shape:
        return Held(tensor_digest(held), math.inf)
    wanted = stored.to(held.dtype)
    if torch.equal(held, wanted):
        return Held(tensor_digest(stored), 0.0)
    scale = wanted.double().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    error = ((held.double() - wanted.double()).abs().max() / scale).item()
    return Held(tensor_digest(held), error if math.isfinite(error) else math.inf)
