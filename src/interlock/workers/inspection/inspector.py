"""What a worker answers of its engine's inside, for a comparison of two (parity/).

    Weigh ──> the weights as the engine uses them, against the model's files
    ScoreTexts ──> log-probabilities of given tokens
    Trace, Record, Take, Apply ──> a forward pass from inside (trace.py, operators.py)

Each is answered between two steps of the engine, and does not touch what is pending.
"""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from interlock.engine.base import Engine
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import ConfigError, TrainingError
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.sync.identity import tensor_digest
from interlock.text import error_headline
from interlock.workers.inspection import operators, trace
from interlock.workers.protocol import (
    Applied,
    Apply,
    HeldTensor,
    Inspected,
    Inspection,
    Record,
    Recorded,
    Scored,
    ScoreTexts,
    Take,
    Taken,
    Trace,
    Traced,
    Weigh,
    Weighed,
)


class Inspector:
    """`engine` and the directory of its `model` are there once it was opened.

    A worker without an engine computes on the CPU: what needs none can be asked of it.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.model = Path()
        self._calls: list[operators.Call] = []

    def answer(self, asked: Inspection) -> Inspected:
        """Raises InterlockError."""
        match asked:
            case Weigh():
                return self._weigh()
            case ScoreTexts():
                return self._score(asked)
            case Trace():
                points, sketches = trace.sketched(self._decoder(asked), asked.text)
                return Traced(points, operators.packed({"sketches": sketches}))
            case Record():
                self._calls = trace.recorded(self._decoder(asked), asked.text, asked.where)
                return Recorded([call.title for call in self._calls])
            case Take():
                return Taken(self._calls[asked.index].operator())
            case Apply():
                return self._apply(asked)

    def _weigh(self) -> Weighed:
        shown = self._opened.held()
        if shown is None:
            return Weighed(None)
        with ExitStack() as opened:
            files = _files(self.model, opened)
            return Weighed({name: _compared(name, x.cpu(), files.get(name)) for name, x in shown})

    def _score(self, asked: ScoreTexts) -> Scored:
        scored = [self._opened.score(text, asked.top_k) for text in asked.texts]
        if not all(math.isfinite(value) for text in scored for value in text.logprobs):
            raise TrainingError("its log-probabilities of given tokens are not finite")
        top = [text.top for text in scored] if asked.top_k else []
        return Scored([text.logprobs for text in scored], top)

    def _apply(self, asked: Apply) -> Applied:
        place = torch.device("cpu") if self.engine is None else self._own_decoder().embed.device
        try:
            outputs = operators.applied(asked.operator, place, asked.exact)
        except (RuntimeError, NotImplementedError) as error:  # what a device cannot do is evidence
            return Applied(operators.packed({}), error_headline(error))
        return Applied(operators.packed(outputs), "")

    def _decoder(self, asked: Trace | Record) -> Decoder:
        if asked.dtype:
            dtype = getattr(torch, asked.dtype)
            return load_decoder(Path(asked.model), dtype, torch.device("cpu"))
        return self._own_decoder()

    def _own_decoder(self) -> Decoder:
        engine = self._opened
        if not isinstance(engine, PortableEngine):
            raise ConfigError(
                f"{engine.description} does not show its layers; bisect torch engines only"
            )
        return engine.decoder

    @property
    def _opened(self) -> Engine:
        assert self.engine is not None, "it is opened first"
        return self.engine


def _files(model: Path, opened: ExitStack) -> dict[str, Any]:
    """Which safetensors file of the model holds each tensor; they stay open as long as `opened`."""
    found: dict[str, Any] = {}
    for path in sorted(model.glob("*.safetensors")):
        file = opened.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(file.keys(), file)
    return found


def _compared(name: str, held: Tensor, file: Any) -> HeldTensor:
    """Equal means: the bits that the file's values have in the engine's own dtype."""
    stored = None if file is None else file.get_tensor(name)
    if stored is None or stored.shape != held.shape:
        return HeldTensor(tensor_digest(held), math.inf)
    wanted = stored.to(held.dtype)
    if torch.equal(held, wanted):
        return HeldTensor(tensor_digest(stored), 0.0)
    scale = wanted.double().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    error = ((held.double() - wanted.double()).abs().max() / scale).item()
    return HeldTensor(tensor_digest(held), error if math.isfinite(error) else math.inf)
