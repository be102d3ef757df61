"""LocalFleet with real processes and real faults."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from remains import gone

from interlock.errors import ConfigError
from interlock.fleet.base import Event, Lost

pytestmark = pytest.mark.timeout(60)

COORDINATOR = """
import sys, time
from pathlib import Path
from interlock.fleet.base import Spec
from interlock.fleet.local import LocalFleet

directory, modules = Path(sys.argv[1]), sys.argv[2]
fleet = LocalFleet()
fleet.start(Spec("w", "obeys", directory / "w.log", env={"PYTHONPATH": modules}))
fleet.send("w", b"os.getpid(), child(), child()")
((_, pids),) = fleet.poll(30.0)
print(pids.decode(), flush=True)
time.sleep(1000)
"""


def test_messages_come_back_whole_and_in_order(hands: Any) -> None:
    sizes = [0, 1, 7, 8, 9, 4096, (1 << 18) - 8, (1 << 18) + 1, 50_000_000, 0, 3]
    sent = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    hands.start("w", "echo")
    for message in sent:
        hands.fleet.send("w", message, reply_bytes=max(sizes))
    events = hands.collect(lambda events: len(events) >= len(sent))
    assert [who for who, _ in events] == ["w"] * len(sent)
    assert [message for _, message in events] == sent


def test_two_workers_answer_at_the_same_time(hands: Any) -> None:
    hands.start("a", "obeys")
    hands.start("b", "obeys")
    hands.fleet.send("a", b"time.sleep(1000)")
    assert hands.ask("b", "6 * 7") == 42
    assert hands.ask("b", "6 * 8") == 48


def test_send_from_several_threads_of_a_worker(hands: Any) -> None:
    hands.start("w", "obeys")
    hands.fleet.send("w", b"send_from_threads(channel, 8, 20)")
    events = hands.collect(lambda events: len(events) >= 161)
    assert events.pop() == ("w", b"None")
    for number in range(8):  # each thread's in its order
        mine = [message for _, message in events if message[0] == number]
        assert mine == [bytes([number, index]) * 100_000 for index in range(20)]


def test_a_killed_worker_is_lost_once_after_its_last_message(
    hands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "interlock.processes.child._PIECE_BYTES", 5
    )  # its end is seen before its word
    hands.start("w", "obeys")
    hands.fleet.send("w", b"channel.send(b'last' * 2000), os.kill(os.getpid(), 9)")
    assert hands.collect(lambda events: len(events) >= 2) == [
        ("w", b"last" * 2000),
        ("w", Lost("signal 9")),
    ]
    assert hands.fleet.poll(0.2) == []
    hands.fleet.send("w", b"1")  # to nobody
    hands.start("w", "obeys")
    assert hands.ask("w", "1 + 1") == 2


def test_a_worker_that_fails_says_why(hands: Any) -> None:
    hands.start("w", "fails")
    assert hands.lost("w") == "exit code 1: RuntimeError: no such chip"
    hands.start("w", "no_such_module")
    assert hands.lost("w") == "exit code 1: ModuleNotFoundError: No module named 'no_such_module'"
    assert hands.log("w").startswith("loading\nTraceback")
    hands.start("v", "obeys")
    hands.fleet.send("v", b"os._exit(7)")
    assert hands.lost("v") == "exit code 7"
    hands.start("v", "obeys")
    hands.fleet.send("v", b"threading.Thread(target=time.sleep, args=[1000]).start(), sys.exit(3)")
    assert hands.lost("v") == "exit code 1: SystemExit: 3"


def test_what_a_lost_worker_started_is_gone_too(hands: Any) -> None:
    hands.start("w", "obeys")
    pids = hands.ask("w", "os.getpid(), child(), forked_child()")
    os.kill(pids[0], signal.SIGKILL)
    assert hands.lost("w") == "signal 9"  # although the forked child held the socket
    assert gone(*pids)


def test_a_child_that_escapes_with_the_socket_hides_no_loss(hands: Any) -> None:
    hands.start("w", "obeys")
    pid, child = hands.ask("w", "os.getpid(), forked_child(session=True)")
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    assert hands.lost("w") == "signal 9"
    os.kill(child, signal.SIGKILL)


def test_a_child_that_escapes_and_goes_on_writing_is_not_listened_to(hands: Any) -> None:
    hands.start("w", "obeys")
    pid, child = hands.ask("w", "os.getpid(), endless_child(channel)")
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    try:
        events = hands.collect(lambda events: isinstance(events[-1][1] if events else 0, Lost))
        assert time.monotonic() - began < 5 and events[-1] == ("w", Lost("signal 9"))
        assert hands.fleet.poll(0.2) == []
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stopped_worker_with_a_full_socket_holds_up_nobody(hands: Any) -> None:
    hands.start("stopped", "echo")
    hands.start("other", "obeys")
    hands.fleet.send("stopped", b"up")
    assert hands.next() == ("stopped", b"up")
    hands.start("stopped too", "obeys")
    pid, child = hands.ask("stopped too", "os.getpid(), child()")
    os.killpg(pid, signal.SIGSTOP)
    for _ in range(20):
        hands.fleet.send("stopped too", bytes(1 << 20))
        hands.fleet.send("stopped", bytes(1 << 20))
    came: list[Event] = []
    hands.fleet.send("other", b"'here'")
    while ("other", b"'here'") not in came:
        came += hands.fleet.poll(10.0)
    came += hands.collect(lambda events: len(came) + len(events) >= 21)
    assert {who for who, _ in came} == {"stopped", "other"} and len(came) == 21
    hands.fleet.kill("stopped too")
    assert gone(pid, child)
    assert hands.fleet.poll(0.2) == []


def test_kill_leaves_no_event_and_the_name_free(hands: Any) -> None:
    hands.start("w", "obeys")
    pid = hands.ask("w", "os.getpid()")
    hands.fleet.send("w", b"'an answer'")
    time.sleep(0.3)  # the answer is in our socket
    hands.fleet.kill("w")
    with pytest.raises(ProcessLookupError):  # reaped
        os.kill(pid, 0)
    hands.fleet.kill("w")
    assert hands.fleet.poll(0.2) == []
    hands.start("w", "obeys")
    assert hands.ask("w", "1 + 1") == 2


def test_close_ends_all_workers_and_leaves_no_open_file(hands: Any, tmp_path: Path) -> None:
    from interlock.fleet.local import LocalFleet

    hands.start("first", "echo")  # with it the reaper
    hands.fleet.kill("first")
    before = sorted(os.listdir("/proc/self/fd"))
    mine = type(hands)(LocalFleet(), tmp_path)
    pids = []
    for index in range(4):
        mine.start(f"w{index}", "obeys")
        pids += mine.ask(f"w{index}", "os.getpid(), child()")
    mine.start("w4", "fails")
    assert mine.lost("w4").startswith("exit code 1")
    mine.fleet.close()
    assert gone(*pids)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_wake_ends_a_poll_from_another_thread(hands: Any) -> None:
    started = time.monotonic()
    threading.Timer(0.2, hands.fleet.wake).start()
    assert hands.fleet.poll(30.0) == []
    assert 0.1 < time.monotonic() - started < 20.0
    for _ in range(100_000):  # never blocks, though nobody polls
        hands.fleet.wake()
    assert hands.fleet.poll(30.0) == []
    assert time.monotonic() - started < 25.0


def test_a_worker_sends_no_more_than_it_was_asked_for(hands: Any) -> None:
    hands.start("w", "obeys")
    hands.fleet.send("w", b"channel.send(bytes(1 << 20))")  # unasked: a megabyte at most
    assert len(hands.collect(lambda events: len(events) >= 2)[0][1]) == 1 << 20
    hands.fleet.send("w", b"channel.send(bytes(5_000_000))", reply_bytes=5_000_000)
    assert len(hands.collect(lambda events: len(events) >= 2)[0][1]) == 5_000_000
    hands.fleet.send("w", b"channel.send(bytes(5_000_000))")  # as before
    assert len(hands.collect(lambda events: len(events) >= 2)[0][1]) == 5_000_000
    line = b"channel.send(b'fine'), channel.send(bytes(1001)), time.sleep(1000)"
    hands.fleet.send("w", line, reply_bytes=1000)
    assert hands.collect(lambda events: len(events) >= 2) == [
        ("w", b"fine"),
        ("w", Lost("sent a message of 1,001 bytes, where 1,000 are the most")),
    ]


def test_a_worker_that_closes_its_end_is_lost(hands: Any) -> None:
    hands.start("w", "obeys")
    pid = hands.ask("w", "os.getpid()")
    hands.fleet.send("w", b"channel._link.shutdown(socket.SHUT_RDWR), time.sleep(1000)")
    assert hands.lost("w") == "signal 9"
    assert gone(pid)


def test_a_worker_holds_its_own_socket_and_its_children_hold_none(hands: Any) -> None:
    """The only way to a worker is a socket that nobody else has: this is the authentication."""
    hands.start("a", "echo")
    hands.start("b", "obeys")
    files = hands.ask("b", "open_files()")
    sockets = {name for name in files if name.startswith("socket:")}
    assert len(sockets) == 1
    assert files.count(str(hands.directory / "b.log")) == 2 and "/dev/null" in files
    assert hands.ask("b", "os.readlink(f'/proc/self/fd/{channel._link.fileno()}')") in sockets
    listing = "subprocess.check_output(['ls', '-l', '/proc/self/fd']).decode()"
    assert "socket:" not in hands.ask("b", listing)
    assert _listening() == []


def _listening() -> list[str]:
    """Sockets of this process that anybody could connect to."""
    mine = {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    tcp = [f"socket:[{row[9]}]" for row in rows if row[3] == "0A"]
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    unix = [f"socket:[{row[6]}]" for row in rows if row[3] == "00010000"]
    return [name for name in tcp + unix if name in mine]


def test_listening_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert len(_listening()) == 1


def test_workers_die_with_a_killed_coordinator(hands: Any, tmp_path: Path) -> None:
    """Whatever they are doing: tests/processes/test_reaper.py."""
    command = [sys.executable, "-c", COORDINATOR, str(tmp_path), hands.modules]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None
        line = coordinator.stdout.readline()
        pids = [int(pid) for pid in line.strip("()\n").split(", ")]
        coordinator.kill()
    assert len(pids) == 3
    assert gone(*pids)


def test_another_interpreter_with_an_environment_of_its_own(hands: Any, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    hands.start("w", "obeys", python=python, env={"CHIP": "npu:3"})
    hands.start("own", "obeys")
    assert hands.ask("w", "sys.executable, os.environ['CHIP']") == (python, "npu:3")
    assert hands.ask("w", "__import__('importlib.util').util.find_spec('torch') is None") is True
    assert hands.ask("own", "sys.executable, 'CHIP' in os.environ") == (sys.executable, False)


def test_an_interpreter_that_can_never_work_is_refused(hands: Any, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a program")
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"\x7fELF nothing")
    wrong.chmod(0o755)
    for python in ("/no/such/python", str(text), str(tmp_path), str(wrong)):
        with pytest.raises(ConfigError, match=f"{python!r} of generator 'w'"):
            hands.start("w", "echo", python=python)
    hands.start("w", "obeys")
    assert hands.ask("w", "1") == 1


def test_a_program_that_is_no_python_or_lacks_interlock_is_lost(hands: Any, tmp_path: Path) -> None:
    hands.start("w", "echo", python="/bin/false")
    assert hands.lost("w") == "exit code 1"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    hands.start("w", "echo", python=python, env={"PYTHONPATH": ""})
    assert "No module named 'interlock'" in hands.lost("w")


def test_a_script_may_stand_in_front_of_python(hands: Any, tmp_path: Path) -> None:
    script = tmp_path / "python"
    for start in ("exec ", ""):
        script.write_text(f'#!/bin/sh\n{start}{sys.executable} "$@"\n[ $? = 0 ] || exit 1\n')
        script.chmod(0o755)
        hands.start("w", "obeys", python=str(script))
        pid = hands.ask("w", "os.getpid()")
        hands.fleet.kill("w")
        assert gone(pid)


def test_a_log_that_cannot_be_opened_loses_the_worker(hands: Any) -> None:
    (hands.directory / "w.log").mkdir()
    hands.start("w", "echo")
    assert hands.lost("w").startswith("cannot be started: Is a directory")
    hands.start("w", "echo")
    hands.fleet.kill("w")
    assert hands.fleet.poll(0.2) == []


def test_logs_are_appended_to(hands: Any) -> None:
    for word in ("one", "two"):
        hands.start("w", "obeys")
        hands.ask("w", f"print({word!r})")
        hands.fleet.kill("w")
    assert hands.log("w") == "one\ntwo\n"
