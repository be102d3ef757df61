"""One program, run once in a sandbox: its output, and how it ended.

run ──> [bwrap …] inside.py ──ready──> the program
 │                                         │ stdout, stderr: the first `most_bytes` together
 └── deadline, too much output: SIGKILL to all of it ──> Ran
"""

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from interlock.processes.deadline import Deadline, ProcessDeadline
from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import Way
from interlock.text import last_line

_START_S = 60.0  # on a busy machine
_END_S = 5.0  # from SIGKILL to the end of all that ran
_PIECE_BYTES = 1 << 16
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}


class EndedBy(StrEnum):
    ITSELF = "itself"  # or by a signal: see `code`
    DEADLINE = "deadline"
    STARVED = "starved"  # the deadline, for others held the processors
    OUTPUT = "output"  # it said more than it might


class Ran(msgspec.Struct, frozen=True):
    ended_by: EndedBy
    code: int  # exit code; of a signal 128 + its number, as a shell has it
    output: bytes  # stdout
    errors: bytes  # stderr

    @property
    def well(self) -> bool:
        return self.ended_by is EndedBy.ITSELF and self.code == 0


class NotStarted(Exception):
    """The sandbox failed, and nothing is known of the program. Never reaches a user."""


def run(
    way: Way,
    program: str | Sequence[str],
    *,
    slot: Slot,
    stdin: bytes = b"",
    limits: ResourceLimits = ResourceLimits(),  # noqa: B008  frozen
    deadline_s: float = 10.0,
    most_bytes: int = 1 << 20,
    visible: Iterable[Path] = (),
) -> Ran:
    """Run Python source (standard library only) or a command, and wait for its end.

    `deadline_s` counts from the start of the program, in its own time. Raises NotStarted.
    """
    if way.name == "Landlock" or slot.uid == 0:
        limits = msgspec.structs.replace(limits, processes=1)  # nothing would keep it from more
    command = [] if isinstance(program, str) else list(program)
    if isinstance(program, str):
        source = program.encode("utf-8", "surrogatepass")
        stdin = len(source).to_bytes(8, "big") + source + stdin
    ended_by = EndedBy.ITSELF
    with way.around(slot, limits, visible) as around:
        try:
            process = subprocess.Popen(
                [*around.command, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=around.inherited,
                start_new_session=True,
            )
        except OSError as error:
            raise NotStarted(f"{way.name}: {error}") from None
        around.started()
        try:
            talk = _Talk(process, around.told, stdin, most_bytes)
        except OSError as error:
            process.kill()
            process.wait(_END_S)
            raise NotStarted(f"{way.name}: {error}") from None
        try:
            talk.until_ready(ProcessDeadline(_START_S, [process.pid]))
            if talk.ready:
                ended_by = talk.until_over(ProcessDeadline(deadline_s, [process.pid]))
        finally:
            talk.end()
    if not talk.ready:
        words = last_line(bytes(talk.errors).decode(errors="replace"), 300)
        raise NotStarted(f"{way.name}: {words or 'it does not start'}")
    code = process.returncode
    return Ran(ended_by, code if code >= 0 else 128 - code, bytes(talk.output), bytes(talk.errors))


class _Talk:
    """What goes to a program and comes from it, until it is over."""

    def __init__(
        self, process: subprocess.Popen[bytes], told: int, stdin: bytes, most_bytes: int
    ) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.ready = False
        self.output, self.errors = bytearray(), bytearray()
        self._process = process
        self._told = told
        self._stdin = memoryview(stdin)
        self._most = most_bytes
        self._selector = selectors.DefaultSelector()
        self._into = {process.stdout.fileno(): self.output, process.stderr.fileno(): self.errors}
        self._feed = process.stdin.fileno()
        for file in (told, *self._into):
            os.set_blocking(file, False)
            self._selector.register(file, selectors.EVENT_READ)
        os.set_blocking(self._feed, False)
        self._selector.register(self._feed, selectors.EVENT_WRITE)
        # Popen.wait looks again and again, with pauses as long as a whole start.
        self._pidfd = os.pidfd_open(process.pid)
        self._selector.register(self._pidfd, selectors.EVENT_READ)

    def until_ready(self, deadline: Deadline) -> None:
        """Until the program begins, or nothing is left that could tell."""
        while self._told in self._selector.get_map() and not self.ready and not deadline.over:
            self._once(deadline)

    def until_over(self, deadline: ProcessDeadline) -> EndedBy:
        """Until it has ended, and all that ran has closed its output."""
        while self._is_on:
            if deadline.over:
                return EndedBy.STARVED if deadline.starved else EndedBy.DEADLINE
            if self._once(deadline):
                return EndedBy.OUTPUT
        return EndedBy.ITSELF

    @property
    def _is_on(self) -> bool:
        watched = self._selector.get_map()
        return any(file in watched for file in (self._pidfd, *self._into))

    def end(self) -> None:
        """Kill what is left, and reap it. Raises NotStarted when something outlives that."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        deadline = Deadline(_END_S)
        self._most = 1 << 62
        while self._is_on and not deadline.over:
            self._once(deadline, keep=False)
        self._process.poll()
        self._selector.close()
        os.close(self._pidfd)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        if self._process.returncode is None or deadline.over:
            raise NotStarted("what ran in it does not die")

    def _once(self, deadline: Deadline, keep: bool = True) -> bool:
        """Wait for one thing to happen; whether there is too much output."""
        for key, _ in self._selector.select(deadline.left):
            file = key.fd
            if file == self._feed:
                self._write()
                continue
            if file == self._pidfd:
                self._selector.unregister(file)
                continue
            with contextlib.suppress(BlockingIOError):
                piece = os.read(file, _PIECE_BYTES)
                if not piece:
                    self._selector.unregister(file)
                elif file == self._told:
                    self.ready = True
                elif keep:
                    self._into[file] += piece[: self._most - len(self.output) - len(self.errors)]
                    if len(piece) and len(self.output) + len(self.errors) >= self._most:
                        return True
        return False

    def _write(self) -> None:
        try:
            self._stdin = self._stdin[os.write(self._feed, self._stdin[:_PIECE_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:
            self._stdin = self._stdin[:0]
        if not self._stdin:
            self._selector.unregister(self._feed)
            assert self._process.stdin is not None
            self._process.stdin.close()
