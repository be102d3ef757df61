"""What starts, asks, watches and stops worker processes.

    dispatcher ──send──> Fleet ═══ bytes ═══> Channel ──receive──> serve(channel)
               <──poll──       <═════════════         <──send─────
                   └── (name, message) or (name, Lost)

A fleet carries whole messages in order and says when a worker is lost. What the messages mean, how
long an answer may take and whether a lost worker is started again is for those above. The worker's
end is processes/channel.py.
"""

from pathlib import Path
from typing import Protocol

import msgspec


class Spec(msgspec.Struct, frozen=True):
    """One worker process to be started."""

    name: str
    module: str  # its `serve(channel)` does the work, e.g. "interlock.workers.worker"
    log: Path  # what the worker prints is appended here
    python: str | None = None  # interpreter of the worker's own environment; None: ours
    env: dict[str, str] = {}  # added to our environment variables
    reach: list[str] = []  # "ssh", "host": runs it on that machine, in its environment; [] here
    resources: dict[str, float] = {}  # what Ray is to reserve: CPU, GPU, NPU, …


class Lost(msgspec.Struct, frozen=True):
    """A worker is gone, and nothing of it runs any more."""

    reason: str  # one line


Event = tuple[str, bytes | Lost]  # the worker's name, and what came of it


class Fleet(Protocol):
    """Worker processes by name. All but `wake` is for the thread that made the fleet."""

    def start(self, spec: Spec) -> None:
        """Start a worker under a name that is free; do not wait for it.

        A worker that does not come up is an event, Lost. Raises ConfigError for what can never
        work, such as an interpreter that does not exist.
        """
        ...

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        """Queue a message; nothing happens if the worker is gone. Does not wait for the worker.

        `reply_bytes`: of the longest message that it may send from now on, for the answer to this
        one and to all that are open; None: as before. A worker that was asked for nothing may send
        signs of life and failures, `processes.child.UNASKED_BYTES` at most. One that sends more is
        lost.
        """
        ...

    def poll(self, timeout_s: float) -> list[Event]:
        """Wait until something happened, `wake` was called or the time is over.

        Messages of one worker come in order. Every start ends in exactly one Lost, after its last
        whole message, unless `kill` or `close` ended it.
        """
        ...

    def pid(self, name: str) -> int | None:
        """Of the worker's process, where that is on this machine."""
        ...

    def wake(self) -> None:
        """End the present or else the next `poll`. From any thread."""
        ...

    def kill(self, name: str) -> None:
        """End the worker at once. No event of it comes afterwards."""
        ...

    def close(self) -> None:
        """Kill all workers."""
        ...
