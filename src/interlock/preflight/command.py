"""A command with a deadline: how every section is run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from interlock.processes import logs
from interlock.processes.child import inherited
from interlock.processes.deadline import Deadline
from interlock.processes.reaper import reaper

_LOOK_S = 0.5  # between two looks at how much it has printed
_REAP_S = 5.0
_PACKAGES = Path(__file__).parents[2]  # where this package lies


class CommandEnd(NamedTuple):
    """How a command came to its end."""

    code: int | None  # None: it was killed at its deadline
    seconds: float
    words: str  # the end of what it printed


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module under this interpreter."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def run(command: Sequence[str], seconds: float, where: Path, **more: str) -> CommandEnd:
    """Run a command in the directory `where`, for so long at most; it is killed with its group.

    `more` joins its environment. What it starts in sessions of their own ends by the reapers of
    those processes; this process's reaper ends the command when this process is gone.
    """
    paths = [str(_PACKAGES), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = inherited({**more, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))})
    began, deadline = time.monotonic(), Deadline(seconds)
    with logs.appended(where / "log") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=where,
            env={**env, **reaper.expect()},
            start_new_session=True,
        )
        try:
            reaper.add(process.pid)
            while process.returncode is None and not deadline.over:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(deadline.left, _LOOK_S))
                logs.cut(log)
        finally:
            reaper.remove(process.pid)
            late = process.returncode is None
            if late:  # not reaped, so the group's number is still its own
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):  # stuck in a driver
                    process.wait(_REAP_S)
        words = logs.tail(log, 0)
    return CommandEnd(None if late else process.returncode, time.monotonic() - began, words)
