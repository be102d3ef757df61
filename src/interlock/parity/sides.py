"""The processes of a comparison, and waiting for them.

    "torch:cpu", its Python, its dtype ──parse──> SideSpec ──> a child (processes/child.py)
    Sides.ask({name: ask, …}) ──in turns──> {name: reply, …}

What accelerators compute is asked for at once. Sides that the host's processors compute take turns:
beside each other, each with a thread per processor, both would wait for threads that have none. A
side is a generator worker (workers/worker.py) that is given no weights but its model's. Every
wait has a deadline. A side that dies, hangs or talks nonsense ends the comparison with one line
that names it and its log.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

import msgspec

from interlock.chips import vendors
from interlock.config.schema import Dtype, EngineName, GeneratorSettings
from interlock.errors import ConfigError, TrainingError
from interlock.processes.child import UNASKED_BYTES, Child, ChildError, inherited, wait
from interlock.processes.deadline import Deadline, ProcessDeadline
from interlock.records.rl import Group
from interlock.text import error_line, one_line
from interlock.workers import protocol, sizes
from interlock.workers.packages import missing_package
from interlock.workers.protocol import (
    Alive,
    Answered,
    Ask,
    Failed,
    Failure,
    Generate,
    Open,
    Opened,
    Reply,
    Room,
)
from interlock.workers.reading import Reader

ANSWER_S = 1800.0  # vLLM takes minutes to start
_MODULE = "interlock.workers.worker"

Kind = TypeVar("Kind", bound=msgspec.Struct)


class SideFailed(TrainingError):
    """A side could not do what it was asked, but is still there: what it said is evidence."""


class SideSpec(msgspec.Struct, frozen=True):
    """One side as the user names it."""

    name: str  # "a" or "b"
    engine: str
    device: str
    dtype: str = "auto"
    python: str | None = None

    @property
    def label(self) -> str:
        return f"{self.engine}:{self.device}"

    @property
    def settings(self) -> GeneratorSettings:
        return msgspec.convert(
            {
                "engine": self.engine,
                "device": self.device,
                "dtype": self.dtype,
                "python": self.python,
            },
            GeneratorSettings,
        )


def parse(name: str, text: str, dtype: str | None = None, python: str | None = None) -> SideSpec:
    """Read "engine:device", such as "torch:cpu", "vllm:cuda" or "torch:sim:mask-512".

    Raises ConfigError when it is none, or the dtype is unknown.
    """
    engine, colon, device = text.partition(":")
    if not colon or not device or engine not in get_args(EngineName):
        raise ConfigError(
            f"--{name} {text!r} is no engine:device; write torch:DEVICE or vllm:DEVICE, such as "
            "torch:cpu"
        )
    offered = get_args(Dtype)
    if dtype is not None and dtype not in offered:
        raise ConfigError(
            f"--{name}-dtype {dtype!r} is not offered; choose one of {', '.join(offered)}"
        )
    if python is None and (lacking := missing_package(engine)):
        raise ConfigError(
            f"--{name} {text} needs the package {lacking!r}, which is not in this environment; "
            f"give the interpreter of one that has it with --{name}-python"
        )
    return SideSpec(name, engine, device, dtype or "auto", python)


class Sides:
    """The processes."""

    def __init__(self, logs: Path, answer_s: float = ANSWER_S) -> None:
        """`logs`: a directory; what side "a" prints goes to a.log in it.

        `answer_s` bounds every wait for an answer, also for the start of an engine.
        """
        self._children: dict[str, Child] = {}
        self._logs, self._answer_s = logs, answer_s
        self._labels: dict[str, str] = {}
        self._asked = 0  # number of the last ask

    def __enter__(self) -> "Sides":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.close()

    def start(self, name: str, label: str, python: str | None = None) -> None:
        """Start a process; it computes nothing yet. Raises ConfigError without such a Python."""
        self._labels[name] = label
        path = sys.executable if python is None else shutil.which(os.path.expanduser(python))
        try:
            if path is None:
                raise FileNotFoundError("no such program")
            self._children[name] = Child(_MODULE, inherited(), python=path, log=self._log(name))
        except OSError as error:
            raise ConfigError(
                f"--{name}-python {python!r} cannot be started ({error_line(error)}); name an "
                "interpreter"
            ) from None

    def open(self, sides: Mapping[str, tuple[Path, GeneratorSettings]]) -> dict[str, Opened]:
        """Start the engines. Raises UserError for what the user can mend."""
        asked = {name: Open(name, str(model), kept) for name, (model, kept) in sides.items()}
        return self.ask(asked, Opened)

    def ask(
        self, asked: Mapping[str, Ask], kind: type[Kind], like: msgspec.Struct | None = None
    ) -> dict[str, Kind]:
        """Ask several sides and wait for all of their answers, which must be of `kind`.

        `like`: an answer of the reference's that none may be much larger than.

        Raises SideFailed when a side says that it failed, ConfigError when it says that the user
        can mend it, and TrainingError when it is lost, late or makes no sense.
        """
        room = None if like is None else len(msgspec.msgpack.encode(like)) + UNASKED_BYTES
        return {name: only for name, (only,) in self._ask(asked, kind, room).items()}

    def generate(self, asked: Mapping[str, Generate], reader: Reader) -> dict[str, list[Group]]:
        """As `ask`; the groups in the order of the problems, their tokens read by `reader`."""
        found: dict[str, list[Group]] = {}
        for name, answers in self._ask(asked, Answered).items():
            problems = asked[name].problems
            by_place = {answer.index: answer for answer in answers}
            if by_place.keys() != set(range(len(problems))):
                raise self._nonsense(name)
            found[name] = []
            for place, problem in enumerate(problems):
                answer = by_place[place]
                read = reader.read(answer.completions, asked[name].sampling, problem)
                if read is None or len(read) != asked[name].completions:
                    raise self._nonsense(name)
                opening = reader.opening(problem)
                found[name].append(Group(problem, answer.prompt_tokens, read, name, opening))
        return found

    def _ask(
        self, asked: Mapping[str, Ask], kind: type[Kind], room: int | None = None
    ) -> dict[str, list[Kind]]:
        """All replies of each side, of `room` bytes at most, once every side has sent its last."""
        self._asked += 1
        replies: dict[str, list[Reply]] = {name: [] for name in asked}
        for turn in self._turns(asked):
            self._ask_at_once({name: asked[name] for name in turn}, replies, room)
        return {
            name: [self._checked(name, reply, kind) for reply in each]
            for name, each in replies.items()
        }

    def _turns(self, names: Iterable[str]) -> list[list[str]]:
        """Who is asked at once: one at most that the host's processors compute."""
        hosts = [name for name in names if self._on_host(name)]
        beside = [name for name in names if name not in hosts]
        return [[*beside, *hosts[:1]], *([name] for name in hosts[1:])]

    def _on_host(self, name: str) -> bool:
        device = self._labels[name].partition(":")[2]
        return vendors.of(vendors.kind_of(device)).host

    def _ask_at_once(
        self, asked: Mapping[str, Ask], replies: Mapping[str, list[Reply]], room: int | None
    ) -> None:
        """Adds to the replies of those that are asked, until each has sent its last."""
        most = {}
        for name, each in asked.items():
            most[name] = sizes.reply_bytes(each, None) if room is None else room
            message = msgspec.structs.replace(each, id=self._asked)
            self._send(name, protocol.encode(message))
        deadline = ProcessDeadline(self._answer_s, self._pids(asked))
        while waiting := [
            name for name in sorted(asked) if not _all_there(asked[name], replies[name])
        ]:
            if deadline.over:
                raise TrainingError(
                    f"{self._who(waiting[0])} gave no answer within {deadline}; "
                    "allow more with --timeout"
                )
            if not any([self._hear(name, most[name], replies[name]) for name in waiting]):
                self._wait(waiting, deadline)

    def _hear(self, name: str, most: int, replies: list[Reply]) -> bool:
        """Take in one message, if there is one; signs of life are no reply."""
        data = self._take(name, most)
        if data is None:
            return False
        reply = self._read(name, data)
        if not isinstance(reply, Alive | Room):
            replies.append(reply)
        return True

    def _send(self, name: str, message: bytes) -> None:
        self._children[name].send(message)

    def _take(self, name: str, most: int) -> bytes | None:
        """The next message of a side, if there is one."""
        try:
            return self._children[name].take(most)
        except ChildError as error:
            raise TrainingError(f"{self._who(name)} is gone: {one_line(str(error))}") from None

    def _pids(self, names: Iterable[str]) -> list[int]:
        return [self._children[name].pid for name in names]

    def _wait(self, names: Sequence[str], deadline: Deadline) -> None:
        wait([self._children[name] for name in names], deadline)

    def _read(self, name: str, data: bytes) -> Reply:
        try:
            return protocol.reply(data)
        except ValueError as error:
            raise TrainingError(
                f"{self._who(name)} sent what is no reply ({error_line(error)})"
            ) from None

    def _checked(self, name: str, reply: Reply, kind: type[Kind]) -> Kind:
        if isinstance(reply, Failed):
            error = ConfigError if reply.kind is Failure.MISTAKE else SideFailed
            raise error(f"side {name} ({self._labels[name]}): {one_line(reply.reason)}")
        if not isinstance(reply, kind) or getattr(reply, "id", None) != self._asked:
            raise self._nonsense(name)
        return reply

    def _nonsense(self, name: str) -> TrainingError:
        return TrainingError(f"{self._who(name)} answered something else than it was asked")

    def _who(self, name: str) -> str:
        return f"side {name} ({self._labels[name]}, log: {self._log(name)})"

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def _all_there(asked: Ask, replies: Sequence[Reply]) -> bool:
    """Whether nothing more is to come; who failed says no more."""
    wanted = len(asked.problems) if isinstance(asked, Generate) else 1
    return len(replies) >= wanted or any(isinstance(reply, Failed) for reply in replies)
