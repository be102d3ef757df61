"""The generator worker: what a fleet starts, with this module.

    channel ──> inbox ──all that is there──> handle ──> engine.step() ──what is finished──> channel
                                                                  └──what Completes drew──>
      fetched weights ──^                       └── over and over ──┘
    every few seconds ── Alive ──> channel

It holds what many callers ask for at once, and waits for a message only when its engine has nothing
to compute. New weights are loaded under what runs; what is finished before they are proven is sent
behind the proof, and with a proof that fails it is lost.

It runs in its own environment, which needs `interlock[generator]` and an engine, nothing of the
learner's. It ends when its coordinator does.
"""

import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec

from interlock.chips import certificates, device, heap
from interlock.chips.admission import needs_certificate
from interlock.chips.memory import MemoryWatch
from interlock.engine.base import Progress, check_request
from interlock.errors import InterlockError, RunError, TrainingError
from interlock.processes.channel import Channel
from interlock.records.trust import Certificate, Stack
from interlock.workers import protocol
from interlock.workers.generator import Generator, PendingGroup, open_generator
from interlock.workers.inspection.inspector import Inspector
from interlock.workers.loading import Fetched, WeightLoader
from interlock.workers.protocol import (
    Abort,
    Answered,
    Ask,
    Brought,
    Complete,
    Generate,
    Load,
    Open,
    Opened,
    Qualify,
    Reply,
    Room,
)
from interlock.workers.streams import Streams

_UNPROVEN = "its weights are not proven"


def serve(channel: Channel) -> None:
    """Answer until the coordinator is gone. Bugs end the process, with a traceback."""
    heap.keep_freed()
    worker = Worker(channel)
    protocol.beat(channel, worker.memory.look)
    while worker.turn():
        pass


class _Problem(NamedTuple):
    """One problem of a Generate."""

    ask: int  # its number
    place: int  # in it
    group: PendingGroup


class Worker:
    """One engine, and what it was asked for and has not answered."""

    def __init__(self, channel: Channel) -> None:
        self.memory = MemoryWatch()
        self._channel = channel
        self._generator: Generator | None = None
        self._inspector = Inspector()
        self._loader: WeightLoader | None = None
        self._problems: dict[str, _Problem] = {}  # by the name that they have in the engine
        self._waiting: deque[str] = deque()  # of these, not yet in the engine
        self._held_back: list[Answered] = []  # until the weights are proven
        self._streams = Streams()
        self._brought: Fetched | None = None  # to be loaded when no stream is open
        self._last = 0  # number of the last Generate
        self._told = 0  # sequences that the coordinator knows there is room for
        self._inbox: SimpleQueue[bytes | Fetched | None] = SimpleQueue()
        threading.Thread(target=self._receive, name="inbox", daemon=True).start()

    def turn(self) -> bool:
        """Handle what has come, and take one step. False: the coordinator is gone."""
        if not self._take_messages():
            return False
        if self._brought is not None and not self._streams.open:
            brought, self._brought = self._brought, None
            self._apply(brought)
        if self._generator is not None:
            self._step()
            self._tell_room()
        return True

    def _receive(self) -> None:
        while (data := self._channel.receive()) is not None:
            self._inbox.put(data)
        self._inbox.put(None)

    def _take_messages(self) -> bool:
        """All that are there, but wait for one when there is nothing to compute.

        False: the coordinator is gone.
        """
        idle = not (self._generator and (self._waiting or self._generator.engine.pending))
        idle = idle and self._brought is None
        while True:
            try:
                message = self._inbox.get(block=idle)
            except Empty:
                return True
            idle = False
            if message is None:
                return False
            if isinstance(message, Fetched):
                self._bring(message)
            else:
                self._handle(protocol.ask(message))

    def _handle(self, asked: Ask) -> None:
        try:
            match asked:
                case Open():
                    self._send(self._open(asked))
                case Load():
                    assert self._loader is not None, "it was opened without a store"
                    self._loader.begin(asked)
                case Generate():
                    self._generate(asked)
                case Complete():
                    self._complete(asked)
                case Abort():
                    self._forget(asked.id)
                case Qualify():
                    raise AssertionError("for another program")
                case _:
                    reply = self._inspector.answer(asked)
                    self._send(msgspec.structs.replace(reply, id=asked.id))
        except InterlockError as error:
            self._forget(asked.id)
            self._send(protocol.failed(error, [asked.id]))

    def _open(self, asked: Open) -> Opened:
        opened = open_generator(
            asked.settings,
            Path(asked.model),
            asked.chat_template,
            asked.name,
            asked.clock,
            asked.adapter,
        )
        engine = opened.engine
        if asked.serves:
            engine.prepare()
        if asked.store is not None:
            assert asked.canary is not None
            self._loader = WeightLoader(engine, asked.store, asked.canary, self._inbox.put)
        self._generator = opened
        self._inspector.engine, self._inspector.model = engine, Path(asked.model)
        # Asked last: an engine may insist on being the first to touch the device.
        self.memory.place = device.claim(asked.settings.device)
        stack = device.stack(self.memory.place)
        facts = engine.description, engine.device, engine.dtype
        return Opened(*facts, stack, _filed(stack), *engine.limits, id=asked.id)

    def _generate(self, asked: Generate) -> None:
        generator, loader = self._opened, self._loader
        self._last = asked.id
        self._told -= len(asked.problems) * asked.completions
        if loader is not None and loader.unproven and not loader.under_way:
            raise TrainingError(_UNPROVEN)
        serves = generator.engine.version
        if serves != asked.number and (asked.exact or serves < asked.number):
            raise TrainingError(f"asked for version {asked.number}, but it serves {serves}")
        assert not (asked.exact and self._problems), "exact beside other work"
        rules = asked.completions, asked.sampling, asked.seed, asked.replay
        groups = [generator.pending(problem, *rules) for problem in asked.problems]
        for place, group in enumerate(groups):
            check_request(group.request, generator.engine.limits)
            name = f"{asked.id}/{place}"
            self._problems[name] = _Problem(asked.id, place, group)
            self._waiting.append(name)
        if asked.exact:  # as `Engine.generate` does it: the same requests before the first step
            self._fill(sys.maxsize)

    def _complete(self, asked: Complete) -> None:
        engine, loader = self._opened.engine, self._loader
        if loader is not None and loader.unproven:
            raise TrainingError(_UNPROVEN)
        if engine.version != asked.number:
            raise TrainingError(f"asked for version {asked.number}, but it serves {engine.version}")
        if (prompted := self._streams.begin(asked, engine)) is not None:
            self._send(prompted)

    def _bring(self, fetched: Fetched) -> None:
        """Load what was fetched, or have it wait for the streams that are open."""
        assert self._loader is not None
        if not self._loader.drains or fetched.error is not None:
            self._apply(fetched)
            return
        self._brought = fetched
        self._send(Brought(id=self._loader.asked))

    def _apply(self, fetched: Fetched) -> None:
        assert self._loader is not None
        try:
            self._loader.apply(fetched)
        except InterlockError as error:
            if self._loader.unproven:
                self._lose_everything(error)
            else:  # what runs goes on with the weights that it has
                self._send(protocol.failed(error, self._loader.give_up()))

    def _step(self) -> None:
        try:
            self._fill(self._opened.engine.limits.slots)
            for progress in self._opened.engine.step():
                self._take(progress)
            if (drawn := self._streams.told(self._opened.engine.version)) is not None:
                self._send(drawn)
        except InterlockError as error:
            self._lose_everything(error)

    def _fill(self, most: int) -> None:
        """Give the engine what waits, up to `most` sequences.

        No more than its slots, so that what proves new weights gets the first that is free.
        """
        engine = self._opened.engine
        while self._waiting and engine.pending < most:
            name = self._waiting.popleft()
            problem = self._problems[name]
            try:
                engine.add(name, problem.group.request)
            except InterlockError as error:
                self._forget(problem.ask)
                self._send(protocol.failed(error, [problem.ask]))

    def _take(self, progress: Progress) -> None:
        """Send what this ends. Raises InterlockError when that cannot be proven."""
        if self._streams.take(progress):
            return
        loader = self._loader
        if loader is not None and loader.owns(progress.name):
            if (proof := loader.take(progress)) is not None:
                self._send(proof)
                for answered in self._held_back:
                    self._send(answered)
                self._held_back.clear()
            return
        ask, place, group = self._problems[progress.name]
        if (completions := group.take(progress)) is None:
            return
        del self._problems[progress.name]
        untold = [msgspec.structs.replace(each, text="") for each in completions]
        answered = Answered(place, group.request.prompt_tokens, untold, id=ask)
        if loader is not None and loader.unproven:
            self._held_back.append(answered)
        else:
            self._send(answered)

    def _forget(self, ask: int) -> None:
        if self._generator is not None:
            self._streams.forget(ask, self._generator.engine)
        for name in [name for name, each in self._problems.items() if each.ask == ask]:
            del self._problems[name]
            self._opened.engine.abort(name)
        self._waiting = deque(name for name in self._waiting if name in self._problems)
        self._held_back = [each for each in self._held_back if each.id != ask]

    def _lose_everything(self, error: InterlockError) -> None:
        """The engine failed, or its weights cannot be proven: what runs under them is worthless."""
        lost = [each.ask for each in self._problems.values()]
        lost += [each.id for each in self._held_back] + self._streams.asks
        ids = list(dict.fromkeys(lost))
        for ask in ids:
            self._forget(ask)
        if self._loader is not None and self._loader.unproven:
            ids += self._loader.give_up()
        self._send(protocol.failed(error, ids))

    def _tell_room(self) -> None:
        """Ask for more as soon as the engine could start more than the coordinator knows of.

        A quarter of the slots is looked ahead, so that one that falls free is filled at once.
        """
        slots = self._opened.engine.limits.slots
        held = sum(each.group.missing for each in self._problems.values())
        room = slots + max(1, slots // 4) - held
        if room > max(self._told, 0):
            self._told = room
            self._send(Room(room, self._last))

    @property
    def _opened(self) -> Generator:
        assert self._generator is not None, "it is opened first"
        return self._generator

    def _send(self, message: Reply) -> None:
        self._channel.send(protocol.encode(message))


def _filed(stack: Stack) -> Certificate | None:
    """The certificate to show. One that cannot be read is none: whether that ends it is for the
    coordinator to say.
    """
    if not needs_certificate(stack.kind):
        return None
    try:
        return certificates.find(stack)
    except RunError as error:
        with suppress(OSError):  # on a full disk
            print(f"no certificate to show: {error}", file=sys.stderr, flush=True)
        return None
