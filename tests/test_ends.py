"""Every verb ends on SIGTERM as on Ctrl-C, and no terminal is too poor to be told things."""

import os
import signal
import subprocess
import sys

import pytest

WAITS = """
import time
from argparse import Namespace
from contextlib import ExitStack
from interlock import cli

def wait(given):
    with ExitStack() as stack:
        stack.callback(print, "put away", flush=True)
        print("waits", flush=True)
        time.sleep(1000)

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_puts_away_what_there_is(number: int) -> None:
    told = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell gives what it starts in the background an ear deaf to some signals.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
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
