"""Attacks on the host by a program that a model might have written: each is contained."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from attacks import ATTACKS, attack
from remains import gone, runs

from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.running import EndedBy, run
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import Way

pytestmark = pytest.mark.usefixtures("quiet")
SMALL = ResourceLimits(memory_mb=256, cpu_s=2, scratch_mb=4, processes=8)


class Host(NamedTuple):
    """What is attacked."""

    facts: dict[str, object]  # see ATTACKS
    secret: Path
    victim: subprocess.Popen[bytes]
    listeners: list[socket.socket]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("SECRET", "hunter2")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        subprocess.Popen(["sleep", "600"]) as victim,
    ):
        abstract.bind("\0interlock-attacked")
        abstract.listen()
        facts = {
            "port": tcp.getsockname()[1],
            "secret": str(secret),
            "parent": os.getpid(),
            "victim": victim.pid,
            "forks": True,
        }
        yield Host(facts, secret, victim, [tcp, abstract])
        victim.kill()


def processes_of(uid: int | None) -> list[int]:
    """Those of a slot; of an ordinary user's, nobody can tell."""
    if uid is None:
        return []
    found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if runs(pid)]
    with suppress(FileNotFoundError):
        return [pid for pid in found if os.stat(f"/proc/{pid}").st_uid == uid]
    return processes_of(uid)  # one has ended meanwhile


@pytest.fixture(params=["own uid", "owner's uid"])
def slot(request: pytest.FixtureRequest, way: Way, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Also the uid with which root's own files are read."""
    private = [tmp_path_factory.mktemp("private")]
    if request.param == "own uid":
        private = []
    elif os.geteuid() != 0 or way.name == "Landlock":
        pytest.skip("it is the only one there is")
    with Slot(reads=private) as lent:
        yield lent


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_mode, found.st_uid, found.st_nlink, found.st_size, found.st_mtime_ns


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_contained(name: str, way: Way, slot: Slot, host: Host) -> None:
    before = _state(host.secret)
    alone = way.name == "Landlock" or slot.uid == 0
    source = attack(name, **{**host.facts, "forks": not alone})
    ran = run(way, source, slot=slot, limits=SMALL, deadline_s=0.7, most_bytes=100_000)
    assert b"ESCAPED" not in ran.output, ran
    assert len(ran.output) + len(ran.errors) <= 100_000
    assert host.victim.poll() is None
    assert host.secret.read_text() == "hunter2"
    assert os.listdir(host.secret.parent) == ["secret"] and _state(host.secret) == before
    assert gone(*processes_of(slot.uid or None))  # to give a lot of memory back takes its time
    for listener in host.listeners:
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_an_attack_can_succeed(host: Host) -> None:
    """Outside a sandbox these do: what the test above looks for is there to be found."""
    for name in (
        "network, TCP", "an abstract socket", "a secret file", "a secret in the environment",
        "files left open", "a symbolic link", "signals to its parent",
        "a mode of a file of the host", "a time of a file of the host",
        "a signal for a socket", "a signal that the kernel sends for it",
    ):  # fmt: skip
        source = attack(name, **host.facts).replace("/tmp/link", str(host.secret) + ".link")
        done = subprocess.run(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            pass_fds=[host.listeners[0].fileno()],
        )
        assert b"ESCAPED" in done.stdout, name


@pytest.mark.parametrize(
    ("source", "ended_by"),
    [
        ("while True: pass", EndedBy.DEADLINE),
        ("while True: print('x' * 1000)", EndedBy.OUTPUT),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", EndedBy.OUTPUT),
        ("import os\nos.close(1), os.close(2)\nwhile True: pass", EndedBy.DEADLINE),
    ],
)
def test_what_does_not_end_is_ended(source: str, ended_by: EndedBy, way: Way, slot: Slot) -> None:
    ran = run(way, source, slot=slot, deadline_s=1, most_bytes=5000)
    assert ran.ended_by is ended_by and not ran.well
    assert len(ran.output) + len(ran.errors) <= 5000


def test_a_bomb_in_one_slot_fails_no_other(way: Way) -> None:
    """The kernel counts processes by user: here each slot has one of its own."""
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    limits = ResourceLimits(processes=16)
    for _ in range(3):
        with Slot() as first, Slot() as second:
            assert first.uid is None or first.uid != second.uid
            assert run(way, bomb, slot=first, limits=limits, deadline_s=0.5).ended_by
            for slot in (first, second):
                ran = run(way, "print(6 * 7)", slot=slot, limits=limits)
                assert (ran.well, ran.output) == (True, b"42\n")
