"""The processes of a comparison, and waiting for them.

    "torch:cpu", its Python, its dtype ──parse──> SideSpec ──> a worker process (fleet/local.py)
    Sides.ask({name: request, …}) ──all at once──> {name: reply, …}

Every wait has a deadline. A side that dies, hangs or talks nonsense ends the comparison with one
line that names it and its log.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, get_args

import msgspec

from interlock.config.schema import Dtype, GeneratorSettings
from interlock.errors import ConfigError, TrainingError
from interlock.fleet.base import Lost, Spec
from interlock.fleet.local import LocalFleet
from interlock.parity import protocol
from interlock.parity.protocol import Open, Opened, Reply, Request
from interlock.text import error_line, one_line
from interlock.workers.protocol import Failed

ANSWER_S = 1800.0  # vLLM takes minutes to start
_MODULE = "interlock.parity.worker"

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
    if not colon or not device or engine not in ("torch", "vllm"):
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
    """The worker processes. The thread that makes it must live as long as they do."""

    def __init__(self, logs: Path, answer_s: float = ANSWER_S) -> None:
        """`logs`: a directory; what side "a" prints goes to a.log in it.

        `answer_s` bounds every wait for an answer, also for the start of an engine.
        """
        self._fleet = LocalFleet()
        self._logs, self._answer_s = logs, answer_s
        self._labels: dict[str, str] = {}

    def __enter__(self) -> "Sides":
        return self

    def __exit__(self, *_: object) -> None:
        self._fleet.close()

    def start(self, name: str, label: str, python: str | None = None) -> None:
        """Start a process; it computes nothing yet. Raises ConfigError without such a Python."""
        self._labels[name] = label
        try:
            self._fleet.start(Spec(name, _MODULE, self._log(name), python))
        except ConfigError as error:
            raise ConfigError(f"--{name}-python: {error}") from None

    def open(self, sides: Mapping[str, tuple[Path, GeneratorSettings]]) -> dict[str, Opened]:
        """Start the engines, at the same time. Raises UserError for what the user can mend."""
        asked = {name: Open(name, str(model), kept) for name, (model, kept) in sides.items()}
        return self.ask(asked, Opened)

    def ask(self, requests: Mapping[str, Request], kind: type[Kind]) -> dict[str, Kind]:
        """Ask several sides at once and wait for all of their answers, which must be of `kind`.

        Raises SideFailed when a side says that it failed, ConfigError when it says that the user
        can mend it, and TrainingError when it is lost, late or makes no sense.
        """
        deadline = time.monotonic() + self._answer_s
        for name, request in requests.items():
            self._fleet.send(name, protocol.encode(request))
        replies: dict[str, Reply] = {}
        while len(replies) < len(requests):
            left = deadline - time.monotonic()
            if left <= 0:
                late = min(requests.keys() - replies.keys())
                raise TrainingError(
                    f"{self._who(late)} gave no answer within {self._answer_s:g} s; "
                    "allow more with --timeout"
                )
            for name, event in self._fleet.poll(left):
                replies[name] = self._read(name, event)
        return {name: self._checked(name, reply, kind) for name, reply in replies.items()}

    def _read(self, name: str, event: bytes | Lost) -> Reply:
        if isinstance(event, Lost):
            raise TrainingError(f"{self._who(name)} is gone: {one_line(event.reason)}")
        try:
            return protocol.reply(event)
        except (ValueError, RecursionError) as error:
            raise TrainingError(
                f"{self._who(name)} sent what is no reply ({error_line(error)})"
            ) from None

    def _checked(self, name: str, reply: Reply, kind: type[Kind]) -> Kind:
        if isinstance(reply, Failed):
            error = ConfigError if reply.permanent else SideFailed
            raise error(f"side {name} ({self._labels[name]}): {one_line(reply.reason)}")
        if not isinstance(reply, kind):
            raise TrainingError(f"{self._who(name)} answered something else than it was asked")
        return reply

    def _who(self, name: str) -> str:
        return f"side {name} ({self._labels[name]}, log: {self._log(name)})"

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"
