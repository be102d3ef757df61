"""Nothing that a process started outlives it, whatever either was doing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from remains import gone, runs

from interlock.processes import reaper as module
from interlock.processes.child import Child, inherited
from interlock.processes.deadline import Deadline
from interlock.processes.reaper import Reaper

Start = Callable[..., Child]
pytestmark = pytest.mark.timeout(60)
SOON_S = 5.0
PARENT = """
import os, sys, time
from pathlib import Path
from interlock.processes.child import Child, inherited

directory, python = sys.argv[1:]
child = Child("taught", inherited({"PYTHONPATH": directory + ":" + os.environ["PYTHONPATH"]}),
              python=python, log=Path(directory) / "log")
print(child.pid, flush=True)
time.sleep(1000)
"""
# What the child does, having written down the process that it started.
SERVE = """
import os, signal, subprocess, time
open(os.path.dirname(__file__) + "/own", "w").write(str(subprocess.Popen(["sleep", "1000"]).pid))
def serve(channel):
    {0}
"""


@contextmanager
def parent(directory: Path, source: str, python: str = sys.executable) -> Iterator[int]:
    """A process with one child, killed inside the `with`, which has the child's number."""
    (directory / "taught.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", PARENT, str(directory), python]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            yield pid
        finally:
            process.kill()


def wait_for(path: Path) -> str:
    deadline = Deadline(20)
    while not (path.exists() and path.read_text()):
        assert not deadline.over, path
        time.sleep(0.01)
    return path.read_text()


@pytest.mark.parametrize(
    "doing", ["channel.receive()", "9**9**9", "os.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_a_child_and_what_it_started_die_with_a_killed_parent(tmp_path: Path, doing: str) -> None:
    with parent(tmp_path, SERVE.format(doing)) as pid:
        own = int(wait_for(tmp_path / "own"))
        time.sleep(0.3)
        assert runs(pid) and runs(own)
    assert gone(pid, own, seconds=SOON_S)


def test_one_that_hangs_at_its_import_dies_too(tmp_path: Path) -> None:
    source = SERVE.replace("def serve", "time.sleep(1000)\ndef serve").format("pass")
    with parent(tmp_path, source) as pid:
        own = int(wait_for(tmp_path / "own"))
    assert gone(pid, own, seconds=SOON_S)


@pytest.mark.parametrize("what", ["kill -STOP $$", "sleep 1000"])
def test_one_that_never_came_to_run_python_dies_too(tmp_path: Path, what: str) -> None:
    """Stopped, or waiting, in its first millisecond: it cannot have asked for anything."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\n{what}\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    with parent(tmp_path, SERVE.format("pass"), str(script)) as pid:
        if "STOP" in what:
            deadline = Deadline(20)
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                assert not deadline.over
                time.sleep(0.01)
    assert gone(pid, seconds=SOON_S)


def test_one_whose_parent_is_killed_at_once_dies_too(tmp_path: Path) -> None:
    with parent(tmp_path, SERVE.format("time.sleep(1000)")) as pid:
        pass
    assert gone(pid, seconds=SOON_S)


def test_one_whose_parent_is_killed_before_it_could_name_it_dies_too(tmp_path: Path) -> None:
    """Stopped at once, in the moment between its start and its registration."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/own\nkill -STOP $$\n")
    script.chmod(0o755)
    (tmp_path / "taught.py").write_text(SERVE.format("pass"))
    silent = "import interlock.processes.reaper as r; r.Reaper.add = lambda *_: time.sleep(99)"
    command = [sys.executable, "-c", PARENT.replace("\n\n", f"\n{silent}\n"), tmp_path, script]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with subprocess.Popen(command, env=environment) as process:
        pid = int(wait_for(tmp_path / "own"))
        process.kill()
    assert gone(pid, seconds=SOON_S)


MADE = """
import sys, time
from pathlib import Path
from interlock.processes.scratch import Scratch

where, elsewhere = sys.argv[1:]
kept, dropped = Scratch("kept-", where), Scratch("dropped-", where)
Path(kept.name, "link").symlink_to(elsewhere)
Path(kept.name, "below").mkdir()
Path(kept.name, "below", "file").touch()
dropped.cleanup()
print("made", flush=True)
time.sleep(1000)
"""


def test_scratch_goes_with_a_killed_process_and_links_out_of_it_are_not_followed(
    tmp_path: Path,
) -> None:
    where, elsewhere = tmp_path / "a b\n+c", tmp_path / "elsewhere"
    where.mkdir()
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    command = [sys.executable, "-c", MADE, str(where), str(elsewhere)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (found,) = where.iterdir()
        assert found.name.startswith("kept-") and found.stat().st_mode & 0o777 == 0o700
        process.kill()
    deadline = Deadline(SOON_S)
    while os.path.lexists(found):
        assert not deadline.over
        time.sleep(0.01)
    assert list(elsewhere.iterdir()) == [elsewhere / "file"] and not list(where.iterdir())


RANK = """
import os, sys, time
from interlock import cli

def hang(arguments):
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(1000)

cli.parse = hang
cli.main()
"""
AGENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a notice")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_rank_dies_with_a_killed_torchrun(tmp_path: Path, stopped: bool) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
        "TORCHELASTIC_RUN_ID": "none",  # as torchrun sets it for its ranks
    }
    command = [sys.executable, "-c", AGENT, "-c", RANK, str(tmp_path / "rank")]
    with subprocess.Popen(command, env=environment) as process:
        pid = int(wait_for(tmp_path / "rank"))
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        process.kill()
    assert gone(pid, seconds=SOON_S)


def test_a_script_that_waits_for_python_dies_with_it(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\n{sys.executable} "$@"\n[ $? = 0 ] || exit 1\n')
    script.chmod(0o755)
    with parent(tmp_path, SERVE.format("time.sleep(1000)"), str(script)) as pid:
        own = int(wait_for(tmp_path / "own"))
    assert gone(pid, own, seconds=SOON_S)


def test_a_child_outlives_the_thread_that_started_it(start: Start) -> None:
    started: list[Child] = []
    source = "while (message := channel.receive()) is not None:\n    channel.send(message)"
    thread = threading.Thread(target=lambda: started.append(start(source)))
    thread.start()
    thread.join()
    time.sleep(0.5)
    assert started[0].ask(b"still here", 30, 100) == b"still here"


@contextmanager
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        yield process.pid
        process.kill()


def reaper_of(reaper: Reaper) -> int:
    assert reaper._process is not None
    return reaper._process.pid


def test_a_reaper_that_was_killed_is_replaced_with_all_it_knew() -> None:
    reaper = Reaper()
    with sleeper() as first, sleeper() as second:
        reaper.add(first)
        before = reaper_of(reaper)
        os.kill(before, signal.SIGKILL)
        assert gone(before)
        reaper.add(second)
        assert reaper_of(reaper) != before and reaper._known == {first, second}
        reaper.remove(first)
        reaper.remove(second)
        assert runs(reaper_of(reaper))
    assert reaper._process is not None and reaper._process.stdin is not None
    reaper._process.stdin.close()  # nothing left to guard
    assert reaper._process.wait(10) == 0


FORKED = """
import os, sys, time
from interlock.processes.reaper import Reaper
import subprocess

reaper = Reaper()
sleepers = [subprocess.Popen(["sleep", "1000"], start_new_session=True).pid for _ in range(3)]
reaper.add(sleepers[0])
reaper.add(sleepers[2])
reaper.remove(sleepers[2])
if os.fork() == 0:
    reaper.add(sleepers[1])  # with a reaper of its own
    print(*sleepers, flush=True)
    time.sleep(1000)
print(os.getpid(), flush=True)
time.sleep(1000)
"""


def test_it_kills_what_was_added_and_not_removed_and_a_fork_has_its_own() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", FORKED]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(2)]
        first, forks, removed = (int(n) for n in max(lines, key=len))
        process.kill()
        process.wait()
        assert gone(first, seconds=SOON_S)
        assert runs(forks) and runs(removed)
        os.killpg(process.pid, signal.SIGKILL)
        assert gone(forks, seconds=SOON_S)
        assert runs(removed)
        os.kill(removed, signal.SIGKILL)


def test_the_signals_that_end_a_service_do_not_end_it(start: Start) -> None:
    start("time.sleep(1000)")
    pid = reaper_of(module.reaper)
    time.sleep(0.3)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    time.sleep(0.3)
    assert runs(pid)


def test_it_is_gone_when_its_parent_is(tmp_path: Path) -> None:
    code = PARENT.replace("print(child.pid", "from interlock.processes import reaper as m\n"
                          "print(m.reaper._process.pid")  # fmt: skip
    (tmp_path / "taught.py").write_text(SERVE.format("channel.receive()"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", code, str(tmp_path), sys.executable]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert runs(pid)
        process.kill()
    assert gone(pid, seconds=SOON_S)


def test_inherited_leaves_the_rest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("PYTHONFAULTHANDLER", "")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    found = inherited({"A": "b"})
    assert found == {
        **{name: value for name, value in os.environ.items() if name != "LOCAL_RANK"},
        "A": "b",
        "PYTHONUNBUFFERED": "1",
    }
