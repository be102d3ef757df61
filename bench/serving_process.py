"""An `interlock serve` as a process of its own, and what it and its workers are doing.

serving(…) ── starts, at the end a signal ──> interlock serve ──> workers
facts, state, drain <── /admin/* ──┘          workers_of, memory <── /proc
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY_S = 600.0
ENDING_S = 60.0
KEY, ADMIN = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
INTERLOCK = Path(sys.executable).with_name("interlock")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def serving(model: str, toml: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    keys = {"INTERLOCK_API_KEY": KEY, "INTERLOCK_ADMIN_KEY": ADMIN}
    command = [str(INTERLOCK), "serve", model, "--config", str(toml), "--port", str(port)]
    with running(command, log, keys) as process:
        yield process


@contextmanager
def running(
    command: list[str], log: Path, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process; it is ended, by force if need be, when the block is left."""
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | env) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()


def facts(port: int) -> list[dict[str, Any]]:
    """Of every replica. Raises OSError while there are none."""
    found: list[dict[str, Any]] = state(port)["replicas"]
    return found


def state(port: int) -> dict[str, Any]:
    """As /admin/replicas tells it. Raises OSError while there are none."""
    return _asked(port, "/admin/replicas", ADMIN)


def drain(port: int, name: str, on: bool) -> None:
    """Give a replica nothing more, or again something."""
    _asked(port, "/admin/drain", ADMIN, {"replica": name, "on": on})


def _asked(port: int, path: str, key: str, body: Any = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def wait_for_all(port: int, count: int) -> None:
    """Until so many replicas are ready."""
    until = time.monotonic() + READY_S
    states: list[str] = []
    while time.monotonic() < until:
        try:
            states = [each["state"] for each in facts(port)]
        except OSError:
            states = []
        if states.count("ready") == count:
            return
        time.sleep(0.5)
    sys.exit(f"not all replicas came up: {states}")


def workers_of(pid: int) -> list[int]:
    """The processes of replicas below a server."""
    found, below = [], [pid]
    while below:
        tasks = Path(f"/proc/{below.pop()}/task").glob("*/children")  # a thread may have started it
        for child in [int(each) for task in tasks for each in _read(task).split()]:
            below.append(child)
            if b"interlock.workers.worker" in _read(Path(f"/proc/{child}/cmdline")):
                found.append(child)
    return found


def memory(pid: int) -> int:
    """Bytes that a process has in memory."""
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * _PAGE if fields else 0


def _read(path: Path) -> bytes:
    """Nothing, if the process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
