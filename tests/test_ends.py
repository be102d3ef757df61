"""Every verb ends on SIGTERM as on Ctrl-C, and no terminal is too poor to be told things."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WAITS = """
import signal
import time
from argparse import Namespace
from contextlib import ExitStack
from interlock import cli

def wait(given):
    with ExitStack() as stack:
        stack.callback(print, "put away", flush=True)
        print("waits", flush=True)
        time.sleep(1000)

# A shell gives what it starts in the background an ear deaf to some signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
cli.parse = lambda arguments: Namespace(verb=wait)
cli.main()
"""
TELLS = """
from argparse import Namespace
from interlock import cli
from interlock.errors import ConfigError

def tell(given):
    print("2 × 2 ✓", input())
    raise ConfigError("no answer of https://me:hunter2@host/a?sig=9f8e7d: “nothing”")

cli.parse = lambda arguments: Namespace(verb=tell)
cli.main()
"""

GOES_ON = """
import os
from argparse import Namespace
from pathlib import Path
from interlock import cli
from interlock.terminal import Screen

def work(given):
    screen = Screen()
    for number in range(3):
        screen.print(f"step {number}")
    Path("done").write_text(str(os.open("done.lock", os.O_CREAT)))

cli.parse = lambda arguments: Namespace(verb=work)
cli.main()
"""
PRINTS = """
from argparse import Namespace
from interlock import cli
cli.parse = lambda arguments: Namespace(verb=lambda given: print("x" * 100_000))
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_puts_away_what_there_is(number: int) -> None:
    told = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert told.stdout is not None and told.stdout.readline() == "waits\n"
    told.send_signal(number)
    out, err = told.communicate(timeout=60)
    assert (told.returncode, out, err) == (130, "put away\n", "interlock: stopped\n")


def test_a_terminal_of_ascii_and_bytes_that_are_no_text_end_nothing() -> None:
    told = subprocess.run(
        [sys.executable, "-c", TELLS],
        input=b"\xff\xfe\n",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (told.returncode, told.stdout) == (2, b"2 ? 2 ? ??\n")
    assert told.stderr == b"interlock: no answer of https://?@host/a??: ?nothing?\n"


def unheard() -> int:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_what_runs_goes_on_when_its_reader_has_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GOES_ON]
    told = subprocess.run(command, stdout=unheard(), stderr=subprocess.PIPE, cwd=tmp_path)
    assert (told.returncode in (0, 141), told.stderr) == (True, b"")
    assert (tmp_path / "done").exists()


def test_a_closed_stream_leaves_its_number_to_no_file(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -c '{GOES_ON}' <&- >&- 2>&-"
    told = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path)
    assert told.returncode == 0
    assert int((tmp_path / "done").read_text()) > 2


def test_output_that_nobody_takes_is_no_traceback() -> None:
    command = [sys.executable, "-c", PRINTS]
    told = subprocess.run(command, stdout=unheard(), stderr=subprocess.PIPE)
    assert (told.returncode, told.stderr) == (141, b"")
    both = unheard()
    assert subprocess.run(command, stdout=both, stderr=both).returncode == 141
    with open("/dev/full", "wb") as full:
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert told.returncode == 2
    assert told.stderr.startswith(b"interlock: cannot write the output: No space left on device")
    assert told.stderr.count(b"\n") == 1
