"""Verifier processes that can be killed: a bad verifier costs its answer, never the run.

    verify(pairs) ──> threads, one per worker ──> verifier_worker process ──> Verdict, in order
                                │ no reply in time, a broken reply, or the process is gone
                                └──> kill the process group, Verdict(0.0, error), start a new one

Each worker is a fresh interpreter in a session of its own, with a bare environment and an empty
working directory. This contains faults; it is no sandbox against hostile code: a child process that
opens a session of its own outlives the worker.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

import msgspec

from interlock.config.schema import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem, Verdict
from interlock.tasks.verifier_worker import HEADER, Reply, Request, Setup
from interlock.text import last_line

START_TIMEOUT_S = 60.0  # importing a verifier's libraries on a busy machine
_KILL_TIMEOUT_S = 5.0
_MAX_REPLY_BYTES = 1 << 16
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH")

logger = logging.getLogger(__name__)
T = TypeVar("T")


class VerifierPool:
    """`task.workers` verifier processes, alive inside the `with` block.

    Entering raises TaskError when the verifier cannot be loaded. `errors` counts the verdicts that
    carry an error.
    """

    def __init__(self, task: TaskSettings) -> None:
        self.errors = 0
        self._task = task

    def __enter__(self) -> "VerifierPool":
        self._directory = tempfile.TemporaryDirectory(
            prefix="interlock-verifier-", ignore_cleanup_errors=True
        )
        self._workers = [
            _Worker(self._task, self._directory.name) for _ in range(self._task.workers)
        ]
        self._threads = ThreadPoolExecutor(self._task.workers, thread_name_prefix="verifier")
        try:
            list(self._threads.map(_Worker.start, self._workers))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown()
        for worker in self._workers:
            worker.stop()
        self._directory.cleanup()

    def verify(self, pairs: list[tuple[Problem, str]]) -> list[Verdict]:
        """One verdict per (problem, answer), in order. One call at a time.

        An answer has `task.timeout_s` seconds. One whose verifier hangs, crashes, raises or returns
        anything but a finite number gets reward 0 and an error.
        """
        verdicts: list[Verdict | None] = [None] * len(pairs)
        waiting = deque(range(len(pairs)))

        def work(worker: _Worker) -> None:
            while (index := _pop(waiting)) is not None:
                verdicts[index] = worker.judge(*pairs[index])

        try:
            list(self._threads.map(work, self._workers))
        finally:
            waiting.clear()  # after an interrupt the threads end with the answer in hand
        judged = [verdict for verdict in verdicts if verdict is not None]
        assert len(judged) == len(pairs)
        for (problem, _), verdict in zip(pairs, judged, strict=True):
            if verdict.error is not None:
                self.errors += 1
                logger.warning("verifier failed on %s: %s", problem.id, verdict.error)
        return judged


class _Worker:
    """One verifier process, started when needed."""

    def __init__(self, task: TaskSettings, directory: str) -> None:
        self._task = task
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0

    def start(self) -> None:
        """Start the process and wait until its verifier is loaded. Raises TaskError."""
        with tempfile.TemporaryFile() as stderr:
            failure: str | None
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "interlock.tasks.verifier_worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    bufsize=0,
                    env=_environment(self._directory),
                    start_new_session=True,
                )
                self._number = 0
                setup = Setup(self._task, self._directory)
                failure = self._ask(msgspec.msgpack.encode(setup), START_TIMEOUT_S).error
            except (OSError, _Failure) as error:
                failure = f"{error} {_last_line(stderr)}".rstrip()
        if failure is not None:
            self.stop()
            raise TaskError(f"the verifier of task {self._task.name!r} does not load: {failure}")

    def judge(self, problem: Problem, answer: str) -> Verdict:
        if self._process is None:
            try:
                self.start()
            except TaskError as error:
                return Verdict(0.0, str(error))
        self._number += 1
        request = Request(self._number, problem, answer.encode("utf-8", "surrogatepass"))
        try:
            reply = self._ask(msgspec.msgpack.encode(request), self._task.timeout_s)
        except _Failure as error:
            self.stop()
            return Verdict(0.0, str(error))
        if reply.last:
            self.stop()
        return Verdict(reply.reward, reply.error)

    def stop(self) -> str:
        """Kill the process with all its children, and reap it. Says how it ended."""
        process, self._process = self._process, None
        if process is None:
            return "not running"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            _present(pipe).close()
        try:
            code = process.wait(_KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "stuck in the kernel"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _ask(self, body: bytes, timeout_s: float) -> Reply:
        """Send one frame and wait for its reply. Raises _Failure."""
        process = _present(self._process)
        deadline = time.monotonic() + timeout_s
        try:
            _write(_present(process.stdin).fileno(), HEADER.pack(len(body)) + body, deadline)
            output = _present(process.stdout).fileno()
            (length,) = HEADER.unpack(_read(output, HEADER.size, deadline))
            if length > _MAX_REPLY_BYTES:
                raise _Failure("the verifier wrote into the pool's pipe")
            reply = msgspec.msgpack.decode(_read(output, length, deadline), type=Reply)
        except TimeoutError:
            raise _Failure(f"no verdict within {timeout_s:g} s") from None
        except (EOFError, BrokenPipeError):
            raise _Failure(f"the verifier's process ended ({self.stop()})") from None
        except ValueError:
            raise _Failure("the verifier wrote into the pool's pipe") from None
        if reply.number != self._number:
            raise _Failure("the verifier replied twice")
        return reply


class _Failure(Exception):
    """The process gave no usable reply and must be killed."""


def _pop(waiting: deque[int]) -> int | None:
    with suppress(IndexError):
        return waiting.popleft()
    return None


def _present(value: T | None) -> T:
    assert value is not None
    return value


def _write(pipe: int, data: bytes, deadline: float) -> None:
    os.set_blocking(pipe, False)
    view = memoryview(data)
    while view:
        _await(pipe, select.POLLOUT, deadline)
        view = view[os.write(pipe, view) :]


def _read(pipe: int, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        _await(pipe, select.POLLIN, deadline)
        piece = os.read(pipe, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _await(pipe: int, event: int, deadline: float) -> None:
    """Wait until the pipe is ready. Raises TimeoutError."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _last_line(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return last_line(stderr.read().decode(errors="replace"))


def _environment(directory: str) -> dict[str, str]:
    """No secrets, one thread per numerical library, and a fixed order of sets."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package_root = str(Path(__file__).parents[2])
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, kept.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TMPDIR": directory,
    }
