"""Real processes: that answer, die, hang, stop, and say too much."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from remains import gone

from interlock.processes.child import (
    Child,
    ChildEnded,
    ChildGarbage,
    ChildLate,
    inherited,
    wait,
)
from interlock.processes.deadline import Deadline

Start = Callable[..., Child]
pytestmark = pytest.mark.timeout(60)
MEG = 1 << 20
ECHO = """
while (message := channel.receive()) is not None:
    channel.send(message)
"""


def test_it_answers_in_order_whatever_the_size(start: Start) -> None:
    child = start(ECHO)
    for size in (0, 1, 7, 8, 9, 4096, (1 << 18) - 8, 50 * MEG, 3):
        message = os.urandom(min(size, MEG)) * max(1, size // MEG)
        assert child.ask(message, 30, len(message)) == message


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("os.kill(os.getpid(), 9)", "signal 9"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("os._exit(7)", "exit code 7"),
        ("print('these are my', 'last words\\n', flush=True); os._exit(3)",
         "exit code 3: these are my last words"),
        ("raise RuntimeError('no such\\x1b[2J chip')",
         "exit code 1: RuntimeError: no such␛[2J chip"),
        ("sys.exit(0)", "exit code 1: SystemExit: 0"),  # only the end of `serve` is an end
        ("pass", "exit code 0"),
        ("os.closerange(0, 1000); time.sleep(1000)", "signal 9"),  # ours: it talks no more
        ("channel._link.sendall(bytes(7) + b'\\5' + b'torn'); os._exit(0)", "exit code 0"),
    ],
)  # fmt: skip
def test_it_says_how_it_ended(start: Start, source: str, how: str) -> None:
    child = start(f"channel.receive()\n{source}")
    with pytest.raises(ChildEnded) as caught:
        child.ask(b"now", 30, 100)
    assert str(caught.value) == child.close() == how
    with pytest.raises(ChildEnded):  # and again, of a child that is gone
        child.ask(b"and now", 30, 100)


def test_its_last_word_counts_though_it_is_dead(start: Start) -> None:
    child = start("channel.send(b'last' * 5000); os.kill(os.getpid(), 9)")
    assert child.ask(b"", 30, 20_000) == b"last" * 5000
    with pytest.raises(ChildEnded, match=r"^signal 9$"):
        child.receive(30, 100)


@pytest.mark.parametrize(
    "source",
    [
        "time.sleep(1000)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "9**9**9",  # no other thread of it runs
        "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(1000)",
    ],
)
def test_one_that_hangs_is_late_and_can_be_killed(start: Start, source: str) -> None:
    child = start(f"channel.send(b'up'); {source}")
    assert child.receive(30, 10) == b"up"
    began = time.monotonic()
    with pytest.raises(ChildLate):
        child.ask(bytes(50 * MEG), 0.5, 100)  # more than the socket takes
    assert 0.5 <= time.monotonic() - began < 5
    assert child.close() == "signal 9"
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):  # reaped
        os.kill(child.pid, 0)


def test_a_late_answer_is_not_taken_for_the_next(start: Start) -> None:
    child = start("channel.receive(); time.sleep(0.5); channel.send(b'one'); time.sleep(1000)")
    with pytest.raises(ChildLate):
        child.ask(b"first", 0.1, 100)
    time.sleep(2)
    with pytest.raises(ChildGarbage, match="before it was asked"):
        child.ask(b"second", 30, 100)


def test_one_that_is_late_may_be_waited_for(start: Start) -> None:
    child = start("channel.receive(); time.sleep(0.5); channel.send(b'one'); time.sleep(1000)")
    with pytest.raises(ChildLate):
        child.ask(b"", 0.1, 100)
    assert child.receive(30, 100) == b"one"


def test_a_giant_message_ends_the_talk_by_its_header(start: Start) -> None:
    child = start("""
        channel.receive()
        channel._link.sendall((10**9).to_bytes(8, "big"))
        while True:
            channel._link.sendall(bytes(1 << 20))
        """)
    began = time.monotonic()
    with pytest.raises(ChildGarbage, match="sent a message of 1,000,000,000 bytes, where 1,000 "):
        child.ask(b"", 30, 1000)
    assert time.monotonic() - began < 10 and child._received < MEG
    assert gone(child.pid)


def test_an_answer_is_as_long_as_was_asked_for_and_no_longer(start: Start) -> None:
    child = start(ECHO)
    assert child.ask(bytes(5000), 30, 5000) == bytes(5000)
    with pytest.raises(ChildGarbage, match="of 5,001 bytes, where 5,000 are the most"):
        child.ask(bytes(5001), 30, 5000)


def test_bytes_that_are_no_frame_are_garbage(start: Start) -> None:
    child = start("channel.receive(); channel._link.sendall(b'\\xff' * 64); time.sleep(1000)")
    with pytest.raises(ChildGarbage, match="sent a message of 18,446,744"):
        child.ask(b"", 30, 1 << 40)


def test_what_it_said_unasked_is_garbage(start: Start) -> None:
    child = start("channel.send(b'up'); channel.send(b'hello'); time.sleep(1000)")
    assert child.receive(30, 100) == b"up"
    time.sleep(0.5)
    with pytest.raises(ChildGarbage):
        child.ask(b"", 30, 100)


@pytest.mark.parametrize("whole", [True, False])
def test_what_escapes_with_the_socket_cannot_keep_us_reading(start: Start, whole: bool) -> None:
    """A process that it started goes on writing into the socket when the child is dead."""
    child = start(f"""
        channel.receive()
        if (pid := os.fork()) == 0:
            os.setsid()
            time.sleep(0.3)
            frame = (8).to_bytes(8, "big") + b"x" * 8 if {whole} else bytes(7)
            while True:
                os.write(channel._link.fileno(), frame * 4000)
        channel.send(str(pid).encode())
        """)
    pid = int(child.ask(b"", 30, 100))
    try:
        time.sleep(1.0)
        began, before = time.monotonic(), child._received
        while True:
            try:
                child.take(100)
            except (ChildEnded, ChildGarbage):
                break
        assert time.monotonic() - began < 3
        assert child._received - before < MEG
    finally:
        os.kill(pid, signal.SIGKILL)


def test_closing_kills_what_it_started_and_leaves_no_file_open(start: Start) -> None:
    start(ECHO).close()  # the reaper is up
    before = sorted(os.listdir("/proc/self/fd"))
    child = start("""
        channel.receive()
        own = subprocess.Popen(["sleep", "1000"]).pid
        channel.send(str(own).encode())
        time.sleep(1000)
        """)
    own = int(child.ask(b"", 30, 100))
    assert child.close() == child.close() == "signal 9"
    assert gone(own)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_one_that_cannot_be_started_leaves_no_file_open(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    (tmp_path / "log").mkdir()
    for python, log in (("/no/such/python", None), (sys.executable, tmp_path / "log")):
        with pytest.raises(OSError):
            Child("echo", inherited(), python=python, log=log)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_its_environment_is_the_one_given(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("OURS", "too")
    child = start("channel.send(repr(dict(os.environ)).encode())", env={"CHIP": "npu:3"})
    found = eval(child.ask(b"", 30, MEG))
    assert found["CHIP"] == "npu:3" and found["OURS"] == "too" and "RANK" not in found


def test_it_holds_one_socket_and_what_it_starts_holds_none(start: Start) -> None:
    child = start("""
        names = [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2, channel._link.fileno())]
        listing = subprocess.check_output(["ls", "-l", "/proc/self/fd"]).decode()
        channel.send(repr((names, listing)).encode())
        """)
    names, listing = eval(child.ask(b"", 30, MEG))
    assert names[0] == "/dev/null" and names[1] == names[2] and names[3].startswith("socket:")
    assert "socket:" not in listing


def test_what_it_prints_is_appended_to_its_log(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "child.log"
    for word in ("one", "two"):
        child = start(f"print({word!r}); os._exit(2)", log=log)
        with pytest.raises(ChildEnded, match=f"^exit code 2: {word}$"):
            child.receive(30, 100)
        assert child.last_words() == f"{word}\n"
    assert log.read_text() == "one\ntwo\n"


def test_of_a_long_log_the_end_is_kept(start: Start) -> None:
    child = start(
        "print('x' * 10**6); print('last'); channel.receive(); print('more'); os._exit(2)"
    )
    with pytest.raises(ChildEnded, match=r"^exit code 2: more$"):
        child.ask(b"", 30, 100)
    assert child.last_words().endswith("x\nlast\nmore\n") and len(child.last_words()) == 1 << 14


def test_waiting_ends_with_the_first_of_several(start: Start) -> None:
    quiet, quick = start("time.sleep(1000)"), start("time.sleep(0.3); channel.send(b'here')")
    began = time.monotonic()
    while (found := quick.take(10)) is None:
        wait([quiet, quick], Deadline(30))
    assert found == b"here" and quiet.take(10) is None
    began = time.monotonic()
    wait([quiet], Deadline(0.2))
    assert 0.2 <= time.monotonic() - began < 5


def test_a_module_is_not_run_by_hand() -> None:
    command = [sys.executable, "-m", "interlock.processes.entry", "echo"]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "this is started by interlock, not by hand\n")


def test_the_childs_side_needs_the_standard_library_only() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import interlock.processes.entry; "
        "print(*{n.partition('.')[0] for n in sys.modules} - sys.stdlib_module_names)"
    )
    source = str(Path(__file__).parents[2] / "src")
    command = [sys.executable, "-I", "-S", "-c", code, source]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= {"interlock", "__main__"}
