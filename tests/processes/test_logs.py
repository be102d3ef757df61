"""What a child prints is bounded, and goes where it should."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from interlock.processes import logs


def test_a_log_that_grows_keeps_its_end_and_is_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MOST_BYTES", 1 << 17)
    path = tmp_path / "logs" / "w.log"
    with logs.appended(path) as log:
        os.write(log.fileno(), b"a line of words\n" * (1 << 13))
        assert not logs.cut(log)  # exactly as long as it may be
        os.write(log.fileno(), b"the last\n")
        assert logs.cut(log) and path.stat().st_size < 1 << 15
        os.write(log.fileno(), b"and on\n")
        assert logs.tail(log, 0).endswith("the last\nand on\n")
        assert path.read_bytes().startswith(b"[what was printed before is cut off]\n")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "w.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        logs.appended(tmp_path / "w.log")


def test_a_child_that_hangs_at_import_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Also one that no reaper has heard of."""
    (tmp_path / "hangs.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(1e6)\n")
    ours, theirs = socket.socketpair()
    path = os.pathsep.join([str(tmp_path), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "interlock.processes.entry", "hangs"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )
    theirs.close()
    assert child.stdout is not None and child.stdout.readline() == b"here\n"
    ours.close()  # as the kernel does when a process is killed
    assert child.wait(60) == 1
    child.stdout.close()


def test_a_full_disk_costs_the_log_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MOST_BYTES", 1 << 12)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with logs.appended(tmp_path / "w.log") as log:
        os.write(log.fileno(), b"a line of words\n" * (1 << 10))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            assert logs.cut(log)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.write(log.fileno(), b"there is room again\n")
        assert logs.tail(log, 0) == "there is room again\n"


def test_a_child_that_fails_ends_though_it_cannot_say_why(tmp_path: Path) -> None:
    source = (
        "import threading, time\n"
        "def serve(channel):\n"
        "    threading.Thread(target=time.sleep, args=[1e6]).start()\n"
        "    print('more than is written at once' * 1000)\n"
        "    raise RuntimeError('why')\n"
    )
    (tmp_path / "fails.py").write_text(source)
    ours, theirs = socket.socketpair()
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with open("/dev/full", "wb") as full, ours, theirs:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "interlock.processes.entry", "fails"],
            stdin=theirs,
            stdout=full,
            stderr=full,
            env=os.environ | {"PYTHONPATH": path},
        )
        try:
            assert child.wait(60) == 1
        finally:
            child.kill()
