"""The processes of a comparison, and waiting for them.

    "torch:cpu", its Python, its dtype ──parse──> SideSpec ──> a child (processes/child.py)
    Sides.ask({name: request, …}) ──all at once──> {name: reply, …}

Every wait has a deadline. A side that dies, hangs or talks nonsense ends the comparison with one
line that names it and its log.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, get_args

import msgspec

from interlock.config.schema import Dtype, EngineName, GeneratorSettings
from interlock.errors import ConfigError, TrainingError
from interlock.parity import protocol
from interlock.parity.protocol import Open, Opened, Reply, Request
from interlock.processes.child import Child, ChildError, inherited, wait
from interlock.processes.deadline import Deadline
from interlock.processes.frames import MAX_MESSAGE_BYTES
from interlock.text import error_line, one_line
from interlock.workers.protocol import Failed, Failure

ANSWER_S = 1800.0  # vLLM takes minutes to start
_MODULE = "interlock.parity.worker"
# The operators of one layer of a large model, with their inputs, are hundreds of megabytes.
_MOST_REPLY_BYTES = MAX_MESSAGE_BYTES

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
        """Start the engines, at the same time. Raises UserError for what the user can mend."""
        asked = {name: Open(name, str(model), kept) for name, (model, kept) in sides.items()}
        return self.ask(asked, Opened)

    def ask(self, requests: Mapping[str, Request], kind: type[Kind]) -> dict[str, Kind]:
        """Ask several sides at once and wait for all of their answers, which must be of `kind`.

        Raises SideFailed when a side says that it failed, ConfigError when it says that the user
        can mend it, and TrainingError when it is lost, late or makes no sense.
        """
        deadline = Deadline(self._answer_s)
        for name, request in requests.items():
            self._children[name].send(protocol.encode(request))
        replies: dict[str, Reply] = {}
        while len(replies) < len(requests):
            waiting = sorted(requests.keys() - replies.keys())
            for name in waiting:
                if (data := self._taken(name)) is not None:
                    replies[name] = self._read(name, data)
            if len(replies) + len(waiting) > len(requests):
                continue  # one has answered
            if deadline.over:
                raise TrainingError(
                    f"{self._who(waiting[0])} gave no answer within {self._answer_s:g} s; "
                    "allow more with --timeout"
                )
            wait([self._children[name] for name in waiting], deadline)
        return {name: self._checked(name, reply, kind) for name, reply in replies.items()}

    def _taken(self, name: str) -> bytes | None:
        try:
            return self._children[name].take(_MOST_REPLY_BYTES)
        except ChildError as error:
            raise TrainingError(f"{self._who(name)} is gone: {one_line(str(error))}") from None

    def _read(self, name: str, data: bytes) -> Reply:
        try:
            return protocol.reply(data)
        except (ValueError, RecursionError) as error:
            raise TrainingError(
                f"{self._who(name)} sent what is no reply ({error_line(error)})"
            ) from None

    def _checked(self, name: str, reply: Reply, kind: type[Kind]) -> Kind:
        if isinstance(reply, Failed):
            error = ConfigError if reply.kind is Failure.MISTAKE else SideFailed
            raise error(f"side {name} ({self._labels[name]}): {one_line(reply.reason)}")
        if not isinstance(reply, kind):
            raise TrainingError(f"{self._who(name)} answered something else than it was asked")
        return reply

    def _who(self, name: str) -> str:
        return f"side {name} ({self._labels[name]}, log: {self._log(name)})"

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"
