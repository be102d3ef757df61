"""A program in a sandbox that is talked with: messages to its stdin, messages from its stdout.

    with Dialogue(way, source, slot=slot) as talk ──> starts it, and waits until it begins
         talk.send(message, deadline) ──> talk.receive(deadline, most) ──> bytes
    end of the block ──> SIGKILL to all of it

A message is a frame (processes/frames.py): its length in 8 bytes, then itself. What a program says
is bounded by what it may say; what it prints otherwise is its own affair to keep apart.
"""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
from types import TracebackType
from typing import IO

from interlock.processes.deadline import Deadline, ProcessDeadline
from interlock.processes.frames import FrameReader, header
from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.running import ENVIRONMENT, NotStarted
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import Scene, Way
from interlock.text import last_line

_START_S = 60.0  # on a busy machine
_END_S = 5.0  # from SIGKILL to the end of all that ran
_PIECE_BYTES = 1 << 16


class DialogueLate(Exception):
    """No message in time. Never reaches a user."""


class DialogueOver(Exception):
    """It says nothing more, and how it ended is the message. Never reaches a user."""


class Dialogue:
    """See above. For one thread at a time."""

    def __init__(
        self, way: Way, source: str, *, slot: Slot, limits: ResourceLimits, scene: Scene
    ) -> None:
        """Start it.

        Args:
            source: Python, standard library only, that is run.
            scene: what it sees.

        Raises NotStarted.
        """
        self._way = way
        self._incoming = FrameReader(0)
        self._inbox: list[bytes] = []
        with (
            tempfile.TemporaryFile() as said,
            way.around(slot, limits, scene=scene) as around,
        ):
            try:
                self._process = subprocess.Popen(
                    around.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=ENVIRONMENT,
                    cwd="/",
                    pass_fds=around.inherited,
                    start_new_session=True,
                )
            except OSError as error:
                raise NotStarted(f"{self._way.name}: {error}") from None
            around.started()
            assert self._process.stdin and self._process.stdout
            self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
            os.set_blocking(self._to, False)
            try:
                self._begin(source.encode(), around.told, said)
            except BaseException:
                self.__exit__(None, None, None)
                raise

    def __enter__(self) -> "Dialogue":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill it, and reap it. Raises NotStarted when something outlives that."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._reap()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        if self._process.returncode is None:
            raise NotStarted("what ran in it does not die")

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: bytes, deadline: Deadline) -> None:
        """Raises DialogueLate when it does not read, and DialogueOver."""
        self._write(header(message) + message, deadline)
        if self._process.poll() is not None:
            raise DialogueOver(self._how())

    def receive(self, deadline: Deadline, most: int) -> bytes:
        """The next message, of at most `most` bytes. Raises DialogueLate and DialogueOver."""
        self._incoming.limit = most
        while not self._inbox:
            if self._incoming.fault is not None:
                raise DialogueOver(self._incoming.fault)
            self._wait(self._from, deadline, select.POLLIN)
            piece = os.read(self._from, _PIECE_BYTES)
            if not piece:
                raise DialogueOver(self._how())
            self._inbox += self._incoming.feed(piece)
        return self._inbox.pop(0)

    def _write(self, data: bytes, deadline: Deadline) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._to, deadline, select.POLLOUT)
            try:
                left = left[os.write(self._to, left[:_PIECE_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError:  # it has closed its end; what it still said can be read
                return

    def _begin(self, source: bytes, told: int, said: IO[bytes]) -> None:
        """Hand over the source, and wait until it is run. Raises NotStarted."""
        deadline = ProcessDeadline(_START_S, [self.pid])
        with contextlib.suppress(DialogueLate):
            self._write(len(source).to_bytes(8, "big") + source, deadline)
            self._wait(told, deadline, select.POLLIN)
            if os.read(told, 1) == b"1":
                return
        said.seek(0)
        words = last_line(said.read().decode(errors="replace"), 300)
        raise NotStarted(f"{self._way.name}: {words or 'it does not start'}")

    def _wait(self, file: int, deadline: Deadline, for_what: int) -> None:
        poll = select.poll()
        poll.register(file, for_what)
        while not poll.poll(deadline.left * 1000):
            if deadline.over:
                raise DialogueLate

    def _how(self) -> str:
        """How it ended, in words; it is made to, if it has only closed its stdout."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self._reap(0.2):
                os.killpg(self.pid, signal.SIGKILL)
        self._reap()
        code = self._process.returncode
        if code is None or code == -signal.SIGKILL:
            return "it closed its output"
        # bubblewrap ends as a shell says that what it ran did.
        number = -code if code < 0 else code - 128
        return f"signal {number}" if 0 < number < 65 else f"exit code {code}"

    def _reap(self, patience_s: float = _END_S) -> bool:
        """Wait for the end: Popen.wait looks again and again, in pauses as long as a start."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                ends = os.pidfd_open(self.pid)
                with contextlib.closing(os.fdopen(ends)):
                    poll = select.poll()
                    poll.register(ends, select.POLLIN)
                    poll.poll(patience_s * 1000)
        return self._process.poll() is not None
