"""The process that runs a verifier: `python -m interlock.tasks.verifier_worker`.

    stdin   Setup, then Request, Request, …      one frame each: length (4 bytes) + msgpack
    stdout  Reply number 0 when the verifier is loaded, then one Reply per Request

It limits its own memory, files and core dumps, and turns whatever a verifier returns or raises into
a Reply. The deadline is `verifier_pool`'s: only a kill from outside stops every verifier.
"""

import importlib
import math
import numbers
import os
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from interlock.config.schema import TaskSettings
from interlock.records.rl import Problem
from interlock.text import described

HEADER = struct.Struct(">I")
MAX_FILE_BYTES = 1 << 20
_ERROR_CHARACTERS = 500

_VERIFIERS = {
    "arithmetic": "interlock.tasks.arithmetic",
    "gsm8k": "interlock.tasks.math_verifier",
    "jsonl": "interlock.tasks.math_verifier",
    "reasoning-gym": "interlock.tasks.gym",
}

Verifier = Callable[[Problem, str], Any]


class Setup(msgspec.Struct, frozen=True):
    task: TaskSettings
    directory: str  # where the verifier works, once it is loaded


class Request(msgspec.Struct, frozen=True):
    number: int
    problem: Problem
    answer: bytes  # UTF-8 with lone surrogates passed through, which msgpack's text refuses


class Reply(msgspec.Struct, frozen=True):
    number: int
    reward: float = 0.0
    error: str | None = None
    last: bool = False  # the process ends with this reply


def main() -> None:
    requests, replies = _take_pipes()
    setup = msgspec.msgpack.decode(_receive(requests), type=Setup)
    try:
        verify = _load(setup)
    except BaseException as error:
        _send(replies, Reply(0, error=described(error, _ERROR_CHARACTERS), last=True))
        os._exit(0)
    _send(replies, Reply(0))
    owner = os.getpid()
    while frame := _receive(requests):
        _end_process_after(2 * setup.task.timeout_s)
        reply = judge(verify, msgspec.msgpack.decode(frame, type=Request))
        if os.getpid() != owner:  # the verifier forked and let its child return
            os._exit(0)
        _send(replies, reply)
        if reply.last:
            break
        signal.setitimer(signal.ITIMER_REAL, 0)
    os._exit(0)  # does not wait for threads that a verifier left behind


def judge(verify: Verifier, request: Request) -> Reply:
    """What the verifier says of one answer. A process out of memory or told to exit is given up."""
    answer = request.answer.decode("utf-8", "surrogatepass")
    try:
        return Reply(request.number, reward=_as_reward(verify(request.problem, answer)))
    except BaseException as error:
        last = isinstance(error, MemoryError) or not isinstance(error, Exception)
        return Reply(request.number, error=described(error, _ERROR_CHARACTERS), last=last)


def _as_reward(value: Any) -> float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"the verifier returned a {type(value).__name__}, not a number")
    reward = float(value)
    if not math.isfinite(reward):
        raise ValueError(f"the verifier returned {reward}")
    return reward


def _load(setup: Setup) -> Verifier:
    """Import the verifier's libraries, then set the limits, then run the user's own code if any."""
    name = _VERIFIERS[setup.task.name.partition("/")[0]]
    if "verifier" in setup.task.options:
        name = "interlock.tasks.user_verifier"
    module = importlib.import_module(name)
    _limit_resources(setup.task.memory_mb)
    verify: Verifier = module.open_verifier(setup.task)
    os.chdir(setup.directory)
    return verify


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


def _end_process_after(seconds: float) -> None:
    """A hung worker whose pool was killed, so that nobody kills it, ends by itself."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the protocol away from stdin and stdout: what a verifier prints must not join it."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return requests, replies


def _receive(requests: BinaryIO) -> bytes:
    """The next frame; empty when the pool is gone."""
    header = requests.read(HEADER.size)
    return requests.read(HEADER.unpack(header)[0]) if len(header) == HEADER.size else b""


def _send(replies: BinaryIO, reply: Reply) -> None:
    body = msgspec.msgpack.encode(reply)
    replies.write(HEADER.pack(len(body)) + body)


if __name__ == "__main__":
    main()
