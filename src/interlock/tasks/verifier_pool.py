"""Verifier processes that can be killed: a bad verifier costs its answer, never the run.

    verify(pairs) ──> threads, one per worker ──> verifier_worker.py process ──> Verdict, in order
                                │ no reply in time, a broken reply, or the process is gone
                                └──> kill the process group, a failed Verdict, start a new one

Heavy answers side by side take the processors from each other. So one that had none is judged
again while no other is: what is starved then was starved by others than answers, and is left out.

Each worker is a fresh interpreter in a session of its own, with a bare environment, and works in an
empty directory or in that of the user's verifier. This contains faults, not hostile code: a child
process that opens a session of its own outlives the worker. So a verifier that executes what the
model wrote, or any whose task asks for it, runs in a sandbox (docs/security.md).
"""

import logging
import tempfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from interlock.config.rewards import AnyReward, PythonReward
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.processes.child import Child, ChildEnded, ChildGarbage, ChildLate, bare
from interlock.processes.scratch import Scratch
from interlock.records.coding import from_bytes
from interlock.records.rl import Attempt, Verdict, VerdictStatus
from interlock.sandbox.canary import open_sandbox
from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import Way
from interlock.tasks.alone import alone, beside
from interlock.tasks.executing import executes, judges_outside
from interlock.tasks.retries import Pair, judged_again
from interlock.tasks.user_verifier import split_verifier
from interlock.tasks.verifier_worker import (
    MAX_REPLY_BYTES,
    VerifierReply,
    VerifierRequest,
    VerifierSetup,
    late,
)

START_TIMEOUT_S = 60.0  # importing a verifier's libraries on a busy machine
_GRACE_S = 5.0  # for a sandboxed verifier to tell of an answer that took its whole time
_STARTS_S = 2 * START_TIMEOUT_S  # for a verifier to start two sandboxes of its own
_ATTEMPTS = 3  # to start a process
_MODULE = "interlock.tasks.verifier_worker"
# Of the process that loads, which limits its memory itself once it has (verifier_worker.py). What
# is judged is judged in forks, each with a limit of time.
_LIMITS = ResourceLimits(memory_mb=0, cpu_s=0, scratch_mb=16, processes=0, open_files=256)
_PUBLIC = {Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir())}

logger = logging.getLogger(__name__)


class VerifierPool:
    """`task.workers` verifier processes, alive inside the `with` block.

    Entering raises TaskError when the verifier cannot be loaded, opening SandboxError when it would
    execute what the model wrote and nothing here isolates. `errors` counts the answers that
    could not be judged, `retried` how often it was tried again (retries.py).
    """

    def __init__(self, task: TaskSettings) -> None:
        self.errors = self.retried = 0
        self._task = task
        self._sandbox = sandbox_of(task)

    def __enter__(self) -> "VerifierPool":
        self._directory = Scratch("interlock-verifier-")
        self._workers = [
            VerifierProcess(self._task, self._directory.name, self._sandbox)
            for _ in range(self._task.workers)
        ]
        self._threads = ThreadPoolExecutor(self._task.workers, thread_name_prefix="verifier")
        try:
            list(self._threads.map(VerifierProcess.start, self._workers))
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

    def verify(self, pairs: Sequence[Pair | Attempt]) -> list[Verdict]:
        """One verdict per attempt or (problem, answer), in order. One call at a time.

        An answer has `task.timeout_s` seconds of its verifier's own time. One whose verifier hangs,
        crashes, raises or returns what is no verdict (returned.py) gets reward 0, and its status
        and cause tell. One whose verifier is not there, or has no processor though no other answer
        is judged, is judged again, and at last does not count.
        """
        task = self._task
        judged, again = judged_again(self._once, pairs, task.retries, task.retry_s)
        self.retried += again
        for (problem, *_), verdict in zip(pairs, judged, strict=True):
            if not verdict.status.judged:
                self.errors += 1
                logger.warning("verifier failed on %s: %s", problem.id, verdict.cause)
        return judged

    def _once(self, pairs: Sequence[Pair | Attempt]) -> list[Verdict]:
        verdicts: list[Verdict | None] = [None] * len(pairs)
        waiting = deque(range(len(pairs)))

        def work(worker: VerifierProcess) -> None:
            while (index := _pop(waiting)) is not None:
                with beside():
                    verdicts[index] = worker.verify(Attempt(*pairs[index]))

        try:
            list(self._threads.map(work, self._workers))
        finally:
            waiting.clear()  # after an interrupt the threads end with the answer in hand
        judged = [verdict for verdict in verdicts if verdict is not None]
        assert len(judged) == len(pairs)
        for index, verdict in enumerate(judged):
            if verdict.status is VerdictStatus.STARVED:
                with alone():
                    judged[index] = self._workers[0].verify(Attempt(*pairs[index]))
                if judged[index].status is VerdictStatus.STARVED:
                    break  # the machine is too busy for any
        return judged


class VerifierProcess:
    """One verifier, started when needed."""

    def __init__(self, task: TaskSettings, directory: str, sandbox: Way | None) -> None:
        self._task = task
        self._directory = directory
        self._sandbox = sandbox
        self._slot: Slot | None = None
        self._child: Child | None = None
        self._number = 0

    def start(self) -> None:
        """Start the process and wait until its verifier is loaded. Raises TaskError.

        What does not come up is tried again: a busy machine is no fault of the verifier's.
        """
        failure: str | None = None
        for _ in range(_ATTEMPTS):
            try:
                failure = self._load()
                break
            except _NoVerdict as error:
                failure = str(error)
                if error.status in (VerdictStatus.TIMEOUT, VerdictStatus.STARVED):
                    break
            except OSError as error:
                failure = str(error)
            self.stop()
        if failure is not None:
            self.stop()
            raise TaskError(f"the verifier of task {self._task.name!r} does not load: {failure}")

    def _load(self) -> str | None:
        """Why the verifier does not load; None: it does. Raises OSError and _NoVerdict."""
        self._number = 0
        if self._sandbox is not None:
            return self._load_in(self._sandbox)
        self._child = Child(_MODULE, _environment(self._directory))
        setup = VerifierSetup(self._task, self._directory)
        return self._ask(setup, START_TIMEOUT_S).verdict.cause

    def _load_in(self, sandbox: Way) -> str | None:
        task, visible = _movable(self._task)
        self._slot = Slot(reads=visible)
        with sandbox.around(self._slot, _LIMITS, visible, self._directory) as around:
            assert around.scratch is not None
            self._child = Child(
                _MODULE,
                _environment(around.scratch),
                before=around.command,
                inherited=around.inherited,
            )
            around.started()
            setup = VerifierSetup(task, around.scratch, sandboxed=True)
            return self._ask(setup, START_TIMEOUT_S).verdict.cause

    def verify(self, attempt: Attempt) -> Verdict:
        if self._child is None:
            try:
                self.start()
            except TaskError as error:
                return Verdict.failed(VerdictStatus.UNAVAILABLE, str(error))
        self._number += 1
        request = VerifierRequest.of(self._number, attempt)
        outside = judges_outside(self._task)
        grace_s = _STARTS_S if outside else 0.0 if self._sandbox is None else _GRACE_S
        try:
            reply = self._ask(request, self._task.timeout_s + grace_s)
        except _NoVerdict as error:
            self.stop()
            status = VerdictStatus.UNAVAILABLE if outside else error.status
            return Verdict.failed(status, str(error))
        if reply.last:
            self.stop()
        return reply.verdict

    def stop(self) -> None:
        """Kill the process with all its children, and reap it."""
        child, self._child = self._child, None
        if child is not None:
            child.close()
        if self._slot is not None:
            self._slot.close()
            self._slot = None

    def _ask(self, message: VerifierSetup | VerifierRequest, timeout_s: float) -> VerifierReply:
        """Send one message and wait for its reply. Raises _NoVerdict."""
        assert self._child is not None
        try:
            data = self._child.ask(msgspec.msgpack.encode(message), timeout_s, MAX_REPLY_BYTES)
            reply: VerifierReply = from_bytes(data, VerifierReply)
        except ChildLate as error:
            raise _NoVerdict(*late(error.deadline)) from None
        except ChildEnded as error:
            why = f"the verifier's process ended ({error})"
            raise _NoVerdict(why, VerdictStatus.CRASHED) from None
        except (ChildGarbage, ValueError):
            raise _NoVerdict("the verifier wrote into the pool's pipe") from None
        if reply.number != self._number:
            raise _NoVerdict("the verifier replied twice")
        return reply


class _NoVerdict(Exception):
    """The process gave no usable reply and must be killed."""

    def __init__(self, why: str, status: VerdictStatus = VerdictStatus.ERROR) -> None:
        super().__init__(why)
        self.status = status


def sandbox_of(task: TaskSettings) -> Way | None:
    """What the task's verifiers run in; None: nothing. Raises SandboxError."""
    wanted = task.sandbox == "always" or (task.sandbox == "auto" and executes(task))
    return open_sandbox() if wanted else None


def _movable(task: TaskSettings) -> tuple[TaskSettings, list[Path]]:
    """The task as it can be opened in a sandbox, and what has to be seen there."""
    reward: list[AnyReward] = []
    visible: list[Path] = []
    for each in task.reward:
        if isinstance(each, PythonReward):
            function, folder = _placed(each.function)
            each = msgspec.structs.replace(each, function=function)
            visible.append(folder)
        reward.append(each)
    options = task.options
    if "verifier" in options:
        verifier, folder = _placed(options["verifier"])
        options = {**options, "verifier": verifier}
        visible.append(folder)
    moved = msgspec.structs.replace(task, options=options, reward=reward)
    return moved, list(dict.fromkeys(visible))


def _placed(verifier: str) -> tuple[str, Path]:
    """A user's "file.py:function" by its whole path, and the folder that a sandbox shows of it."""
    path, function = split_verifier(verifier)
    path = path.resolve()
    if any(place.is_relative_to(path.parent) for place in (Path.home(), *_PUBLIC)):
        raise TaskError(
            f"verifier file {path}: a sandbox shows it what lies beside it, and that is all of "
            f"{path.parent}; move it into a directory of its own"
        )
    return f"{path}:{function}", path.parent


def _pop(waiting: deque[int]) -> int | None:
    with suppress(IndexError):
        return waiting.popleft()
    return None


def _environment(directory: str) -> dict[str, str]:
    """No secrets, one thread per numerical library, and a fixed order of sets."""
    return {
        **bare(),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TMPDIR": directory,
    }
