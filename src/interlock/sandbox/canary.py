"""Which way isolates here: the first whose canary can do nothing of what it tries.

That a sandbox starts says little: where namespaces are half forbidden, some have been seen to run
on without any. So a program that attacks is run first, and every attack must fail. (Where our
packages can be read by root alone, the uid of a slot is of no use, and the next way serves.)
"""

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from interlock.errors import SandboxError
from interlock.processes.scratch import Scratch
from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.running import NotStarted, run
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import WAYS, Way

Started = TypeVar("Started")

_PAUSES_S = (0.05, 0.5)
_REMEDY = (
    "allow user namespaces (docs/security.md), or set stage.task.sandbox = "
    '"none" to run what the model wrote unprotected'
)
_ATTACK = """
import os, socket, time
def connects(): return socket.create_connection(("127.0.0.1", {port}), 1)
def reads(): return open({secret!r}).read()
def reads_through_its_parent(): return open("/proc/{parent}/root" + {secret!r}).read()
def writes(): return open({secret!r}, "a")
def writes_into_packages(): return open(os.__file__, "a")
def sees_other_processes():
    return os.listdir("/proc") and os.readlink("/proc/self/ns/pid") == {processes!r}
def cannot_read_our_packages():
    try: return [open(path).close() for path in {packages!r}] == []
    except OSError: return True
def outlives():
    if os.fork() == 0:
        os.setsid(), time.sleep(0.2), print("outlives", flush=True), os._exit(0)
for attack in (connects, reads, reads_through_its_parent, writes, writes_into_packages,
               sees_other_processes, cannot_read_our_packages, outlives):
    try:
        if attack():
            print(attack.__name__.replace("_", " "), flush=True)
    except Exception:
        pass
print("tried", flush=True)
os._exit(0)
"""


@functools.cache
def open_sandbox() -> Way:
    """The way that isolates on this machine, found once for a process. Raises SandboxError."""
    reasons = []
    for kind in WAYS:
        way = kind()
        why = way.why_not() or fault(way)
        if why is None:
            return way
        reasons.append(f"{way.name}: {why}")
    raise SandboxError(f"nothing here isolates ({'; '.join(reasons)}); {_REMEDY}")


def fault(way: Way) -> str | None:
    """What is wrong with it; None: it isolates."""
    with Scratch("interlock-canary-") as directory, Slot() as slot:
        directory.chmod(0o777)
        secret = directory / "secret"
        secret.write_text("secret")
        with socket.create_server(("127.0.0.1", 0)) as server:
            program = _ATTACK.format(
                port=server.getsockname()[1],
                secret=str(secret),
                parent=os.getpid(),
                processes=os.readlink("/proc/self/ns/pid"),
                packages=[__file__, msgspec.__file__],
            )
            try:
                limits = ResourceLimits(processes=8)
                ran = retried(lambda: run(way, program, slot=slot, limits=limits, deadline_s=20))
            except NotStarted as error:
                return str(error).removeprefix(f"{way.name}: ")
    escaped = ran.output.decode(errors="replace").splitlines()
    if "tried" not in escaped or not ran.well:
        return "its canary did not come to an end"
    escaped.remove("tried")
    return f"what runs in it {' and '.join(escaped)}" if escaped else None


def retried(start: Callable[[], Started]) -> Started:
    """Try a start again that failed through no fault of the program's. Raises NotStarted."""
    for pause_s in _PAUSES_S:
        with contextlib.suppress(NotStarted):
            return start()
        time.sleep(pause_s)
    return start()
