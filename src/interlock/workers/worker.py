"""The generator worker: what a fleet starts, with this module.

    channel ──Open, Load, Generate──> one at a time ──Opened, Loaded, Finished, Failed──> channel
                └─Prefetch──> payloads downloaded while the engine works
    every few seconds ── Alive ──> channel

It runs in its own environment, which needs `interlock[generator]` and an engine, nothing of the
learner's. It ends when the dispatcher does.
"""

import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from torch import Tensor

from interlock.chips import certificates, device, heap
from interlock.chips.admission import needs_certificate
from interlock.engine.base import Engine, Request
from interlock.errors import InterlockError, RunError, SyncError, TrainingError
from interlock.processes.channel import Channel
from interlock.records.rl import Sampling, WeightVersion
from interlock.records.trust import Certificate, Stack
from interlock.sync.codec import digest, tensor_digest
from interlock.sync.store import Replica
from interlock.workers import protocol
from interlock.workers.generator import Generator, open_generator
from interlock.workers.protocol import (
    Canary,
    Finished,
    Generate,
    Load,
    Loaded,
    Open,
    Opened,
    Prefetch,
    Qualify,
    Reply,
)


def serve(channel: Channel) -> None:
    """Answer requests until the dispatcher is gone. Bugs end the process, with a traceback."""
    heap.keep_freed()
    worker = Worker(channel)
    protocol.beat(channel)
    while (data := worker.next()) is not None:
        channel.send(protocol.encode(worker.handle(protocol.request(data))))


class Worker:
    """One engine, the weights it was last given, and what it is asked."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._generator: Generator | None = None
        self._replica: Replica | None = None
        self._canary: Canary | None = None
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._background = ThreadPoolExecutor(1)
        threading.Thread(target=self._receive, daemon=True).start()

    def next(self) -> bytes | None:
        """The next request that is not a prefetch; None when the dispatcher is gone."""
        return self._requests.get()

    def handle(self, request: protocol.Request) -> Reply:
        try:
            match request:
                case Open():
                    return self._open(request)
                case Load():
                    return self._load(WeightVersion(request.number, request.digest))
                case Generate():
                    return self._generate(request)
                case Prefetch() | Qualify():
                    raise AssertionError("for _receive, and for another program")
        except InterlockError as error:
            return protocol.failed(error)

    def _receive(self) -> None:
        while (data := self._channel.receive()) is not None:
            try:
                asked = protocol.request(data)
            except (ValueError, RecursionError):
                asked = None  # `serve` decodes it again, and ends the process with what is wrong
            if not isinstance(asked, Prefetch):
                self._requests.put(data)
            elif self._replica is not None:
                self._background.submit(self._prefetch, self._replica, asked)
        self._requests.put(None)

    def _prefetch(self, replica: Replica, asked: Prefetch) -> None:
        try:
            replica.prefetch(WeightVersion(asked.number, asked.digest))
        except SyncError as error:  # `Load` will try again, and report
            print(f"prefetch: {error}", file=sys.stderr, flush=True)

    def _open(self, asked: Open) -> Opened:
        model = Path(asked.model)
        self._generator = open_generator(asked.settings, model, asked.chat_template, asked.name)
        self._replica = Replica(asked.store)
        self._canary = asked.canary
        engine = self._generator.engine
        # Asked last: an engine may insist on being the first to touch the device.
        stack = device.stack(device.claim(asked.settings.device))
        return Opened(engine.description, engine.device, engine.dtype, stack, _filed(stack))

    def _load(self, version: WeightVersion) -> Loaded:
        assert self._generator and self._replica and self._canary
        engine, fetched = self._generator.engine, self._replica.fetched_bytes
        tensors = self._replica.fetch(version)
        self._generator.load(version.number, tensors)
        held = _held(engine, tensors, self._replica.digests)
        decode, prefill = _continuations(engine, self._canary, version.number)
        return Loaded(
            number=version.number,
            digest=held,
            text=engine.score(self._canary.text).logprobs,
            decode=decode,
            prefill=prefill,
            fetched_bytes=self._replica.fetched_bytes - fetched,
        )

    def _generate(self, asked: Generate) -> Finished:
        assert self._generator
        if self._generator.engine.version != asked.number:
            raise SyncError(
                f"asked for version {asked.number}, but it serves {self._generator.engine.version}"
            )
        groups = self._generator.generate(
            asked.problems, asked.completions, asked.sampling, asked.seed
        )
        return Finished(asked.unit, groups)


def _filed(stack: Stack) -> Certificate | None:
    """The certificate to show. One that cannot be read is none: whether that ends it is for the
    dispatcher to say.
    """
    if not needs_certificate(stack.kind):
        return None
    try:
        return certificates.find(stack)
    except RunError as error:
        print(f"no certificate to show: {error}", file=sys.stderr, flush=True)
        return None


def _held(engine: Engine, given: Mapping[str, Tensor], digests: Mapping[str, str]) -> str | None:
    """The digest of the weights the engine uses; None when it cannot show them.

    A tensor that equals the given one, in the engine's own dtype, counts as that one.
    """
    shown = engine.held()
    if shown is None:
        return None
    found = {}
    for name, tensor in shown:
        tensor = tensor.cpu()
        same = name in given and bool((tensor == given[name].to(tensor.dtype)).all())
        found[name] = digests[name] if same else tensor_digest(tensor)
    return digest(found)


def _continuations(engine: Engine, canary: Canary, seed: int) -> tuple[list[float], list[float]]:
    """Log-probabilities of freshly drawn tokens: as they were drawn, and through prefill."""
    sampling = Sampling(temperature=1.0, max_tokens=canary.tokens)
    requests = [
        Request(f"canary-{index}", prompt, 1, sampling, seed)
        for index, prompt in enumerate(canary.prompts)
    ]
    decode: list[float] = []
    prefill: list[float] = []
    for request, (answer,) in zip(requests, engine.generate(requests), strict=True):
        decode += answer.logprobs
        scored = engine.score(request.prompt_tokens + answer.tokens)
        prefill += scored.logprobs[len(request.prompt_tokens) - 1 :]
    if not len(decode) == len(prefill):
        raise TrainingError("the engine scored another number of tokens than it was given")
    return decode, prefill
