import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interlock.rundir.locking import locked

# A child that has not become another program yet still has what its writer had open.
WRITER = """
import os, sys, time
from pathlib import Path
from interlock.rundir.locking import locked
file = open(sys.argv[1], "w")
assert locked(file)
if os.fork() == 0:
    Path(sys.argv[1] + ".held").touch()
    time.sleep(float(sys.argv[2]))
    os._exit(0)
time.sleep(600)
"""


def killed_writer(path: Path, seconds: float) -> None:
    """A writer that is gone, but for a child that keeps its lock so long."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(seconds)])
    late = time.monotonic() + 60
    while not path.with_name(f"{path.name}.held").exists():
        assert process.poll() is None and time.monotonic() < late
        time.sleep(0.01)
    process.kill()
    process.wait()


def test_what_a_killed_writer_was_about_to_start_is_waited_for(tmp_path: Path) -> None:
    killed_writer(tmp_path / "lock", 0.3)
    with open(tmp_path / "lock") as file:
        assert locked(file)
        with open(tmp_path / "lock") as another:
            assert not locked(another)


def test_who_keeps_it_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interlock.rundir.locking._PATIENCE_S", 0.1)
    killed_writer(tmp_path / "lock", 5)
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert locked(descriptor)  # a directory's is its own
        with open(tmp_path / "lock") as file:
            assert not locked(file)
    finally:
        os.close(descriptor)
