"""The process that runs a verifier: a child of verifier_pool.py.

    VerifierSetup, then VerifierRequest, …  ──> serve ──> VerifierReply 0 when it is loaded, then
                                                          one VerifierReply per request

It limits its own memory, files and core dumps, and turns whatever a verifier returns or raises into
a reply. The deadline is the pool's: only a kill from outside stops every verifier. In a sandbox it
only loads the verifier; every answer is judged in a fork.
"""

import functools
import os
import resource
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from interlock.config.rewards import PythonReward
from interlock.config.tasks import TaskSettings
from interlock.errors import Unavailable
from interlock.processes.channel import Channel
from interlock.processes.deadline import ProcessDeadline
from interlock.records.coding import from_bytes, to_bytes
from interlock.records.rl import Attempt, FinishReason, Problem, Verdict, VerdictStatus
from interlock.sandbox.forks import AnswerLate, NoAnswer, apart
from interlock.tasks.packages import module_of
from interlock.tasks.returned import is_sound
from interlock.tasks.rewards import earned, open_rewards
from interlock.text import described, one_line

MAX_FILE_BYTES = 1 << 20
MAX_REPLY_BYTES = 1 << 16
_ERROR_CHARACTERS = 500
_FORGED = "what judged the answer wrote into its own pipe"

_VERIFIERS = {
    "arithmetic": "interlock.tasks.arithmetic",
    "code": "interlock.tasks.code.verifier",
    "gsm8k": "interlock.tasks.math_verifier",
    "jsonl": "interlock.tasks.math_verifier",
    "reasoning-gym": "interlock.tasks.gym",
}

Judge = Callable[[Attempt], Verdict]


class VerifierSetup(msgspec.Struct, frozen=True):
    task: TaskSettings
    directory: str  # an empty one, where verifiers work that are not the user's own
    sandboxed: bool = False  # every answer is judged in a process of its own


class VerifierRequest(msgspec.Struct, frozen=True):
    number: int
    problem: Problem
    answer: bytes  # UTF-8 with lone surrogates passed through, which msgpack's text refuses
    tokens: int | None = None  # as Attempt has them
    finish: FinishReason | None = None
    max_tokens: int | None = None
    step: int | None = None

    @classmethod
    def of(cls, number: int, attempt: Attempt) -> "VerifierRequest":
        answer = attempt.text.encode("utf-8", "surrogatepass")
        figures = attempt.tokens, attempt.finish, attempt.max_tokens, attempt.step
        return cls(number, attempt.problem, answer, *figures)

    @property
    def attempt(self) -> Attempt:
        text = self.answer.decode("utf-8", "surrogatepass")
        figures = self.tokens, self.finish, self.max_tokens, self.step
        return Attempt(self.problem, text, *figures)


class VerifierReply(msgspec.Struct, frozen=True):
    number: int
    verdict: Verdict  # of number 0: on the loading of the verifier itself
    last: bool = False  # the process ends with this reply


def serve(channel: Channel) -> None:
    """Load the verifier, and answer until the pool is gone or the verifier cannot go on."""
    _silence(1)
    data = channel.receive()
    if data is None:
        return
    setup = msgspec.msgpack.decode(data, type=VerifierSetup)
    try:
        loaded = _load(setup)
    except BaseException as error:
        channel.send(msgspec.msgpack.encode(VerifierReply(0, _failure(error), last=True)))
        return
    _silence(2)
    channel.send(msgspec.msgpack.encode(VerifierReply(0, Verdict(0.0))))
    owner = os.getpid()
    judge = functools.partial(verified_apart, setup.task.timeout_s) if setup.sandboxed else verified
    while (data := channel.receive()) is not None:
        reply = judge(loaded, msgspec.msgpack.decode(data, type=VerifierRequest))
        if os.getpid() != owner:  # the verifier forked and let its child return
            os._exit(0)
        channel.send(msgspec.msgpack.encode(reply))
        if reply.last:
            return


def verified(judge: Judge, request: VerifierRequest) -> VerifierReply:
    """What the verifier says of one answer. A process out of memory or told to exit is given up."""
    try:
        return VerifierReply(request.number, judge(request.attempt))
    except Unavailable as error:
        cause = one_line(str(error), _ERROR_CHARACTERS)
        return VerifierReply(request.number, Verdict.failed(VerdictStatus.UNAVAILABLE, cause))
    except BaseException as error:
        last = isinstance(error, MemoryError) or not isinstance(error, Exception)
        return VerifierReply(request.number, _failure(error), last=last)


def verified_apart(timeout_s: float, judge: Judge, request: VerifierRequest) -> VerifierReply:
    """The same from a fork, which the answer may have taken over: it meets no other answer."""

    def fail(status: VerdictStatus, cause: str) -> VerifierReply:
        return VerifierReply(request.number, Verdict.failed(status, cause))

    def work() -> bytes:
        return to_bytes(verified(judge, request).verdict)

    try:
        verdict: Verdict = from_bytes(apart(work, timeout_s, MAX_REPLY_BYTES), Verdict)
    except AnswerLate as error:
        why, status = late(error.deadline)
        return fail(status, why)
    except NoAnswer as error:
        return fail(VerdictStatus.CRASHED, f"the verifier's process ended ({error})")
    except ValueError:
        return fail(VerdictStatus.ERROR, _FORGED)
    except OSError as error:
        return fail(VerdictStatus.UNAVAILABLE, f"no process for the verifier: {error}")
    if verdict.status is VerdictStatus.ERROR:
        return fail(VerdictStatus.ERROR, one_line(verdict.cause or "", _ERROR_CHARACTERS))
    # Only who judges outside of it can say how else a process ended.
    if not (verdict.status.judged and is_sound(verdict)):
        return fail(VerdictStatus.ERROR, _FORGED)
    return VerifierReply(request.number, verdict)


def late(deadline: ProcessDeadline) -> tuple[str, VerdictStatus]:
    """Why there is no verdict in time; whether others held the processors."""
    status = VerdictStatus.STARVED if deadline.starved else VerdictStatus.TIMEOUT
    return f"no verdict within {deadline}", status


def _failure(error: BaseException) -> Verdict:
    return Verdict.failed(VerdictStatus.ERROR, described(error, _ERROR_CHARACTERS))


def _load(setup: VerifierSetup) -> Judge:
    """Import the verifier's libraries, then set the limits, then run the user's own code if any."""
    name = _VERIFIERS[setup.task.name.partition("/")[0]]
    if "verifier" in setup.task.options:
        name = "interlock.tasks.user_verifier"
    module = module_of(name, "it")
    # Those that bring a library's data have it before the limits; a user's own code has limits.
    plain = [each for each in setup.task.reward if not isinstance(each, PythonReward)]
    rewards = open_rewards(replace(setup.task, reward=plain))
    _limit_resources(setup.task.memory_mb)
    own = [each for each in setup.task.reward if isinstance(each, PythonReward)]
    rewards += open_rewards(replace(setup.task, reward=own))
    if "verifier" not in setup.task.options:
        os.chdir(setup.directory)
    verify = module.open_verifier(setup.task)
    return lambda attempt: earned(attempt, verify, rewards)


def _limit_resources(memory_mb: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + (memory_mb << 20),
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _silence(file: int) -> None:
    """What a verifier prints is of no use. In the file of its last words, where what it says while
    it is loaded goes, it would come to MAX_FILE_BYTES with time, and then fail good answers.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file)
    os.close(nowhere)
