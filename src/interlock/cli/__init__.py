"""The command line: `interlock VERB …`.

arguments.py ──> verbs.py ──> one line for every mistake, and the exit code
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn, TextIO

from interlock.cli.arguments import parse
from interlock.errors import BudgetSpent, InterlockError, UserError, VoidResult
from interlock.processes.spins import few_spins
from interlock.processes.torchrun import end_with_torchrun
from interlock.text import hide_credentials, one_line

# What is wrong with a name that was given, wherever it is first looked at.
_OF_A_NAME = (errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM)
_UNHEARD = 128 + signal.SIGPIPE


def command() -> NoReturn:
    """`main` of a process that is there for nothing else, and ends with it.

    A tracker that hangs was left behind (recipes/trackers.py): its exit handlers would wait for as
    long as it does.
    """
    try:
        main()
    except SystemExit as end:
        if any(each.name.startswith("tracker ") for each in threading.enumerate()):
            os._exit(int(end.code or 0))
        raise


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one verb and exit.

    0: done. 1: it failed. 2: the user's mistake. 3: done, and nothing was learned or judged by it.
    4: a run's budget stopped it. 130: interrupted. 141: whoever read the output left too early.
    """
    end_with_torchrun()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # and not nohup's
            signal.signal(number, signal.default_int_handler)
    os.environ.update(few_spins())
    _open_streams()
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _of_output(error)
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream)
    sys.exit(code)


def _open_streams() -> None:
    """A closed stream reads and writes nothing: its number must not go to the next file opened.

    A terminal that cannot show a character shows a "?".
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), TextIOWrapper):
            stream.reconfigure(errors="replace")


def _let_go(stream: TextIO) -> None:
    """What cannot be written is dropped here: at its exit Python would complain of it."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    """-> the exit code"""
    try:
        given = parse(arguments)
        given.verb(given)
    except SystemExit as end:
        return int(end.code or 0)
    except UserError as error:
        return _fail(error, 2)
    except VoidResult as error:
        return _fail(error, 3)
    except BudgetSpent as error:
        return _fail(error, 4)
    except InterlockError as error:
        return _fail(error, 1)
    except ModuleNotFoundError as error:
        if (error.name or "interlock").partition(".")[0] == "interlock":
            raise
        return _fail(f"this needs the package {error.name!r}; pip install 'interlock[demo]'", 2)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except OSError as error:
        if error.filename is not None and error.errno in _OF_A_NAME:
            name = one_line(repr(error.filename), 80)
            return _fail(f"{name}: {error.strerror}; give another path", 2)
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        return _of_output(error)
    return 0


def _of_output(error: OSError) -> int:
    """The exit code when standard output takes no more."""
    if error.errno == errno.EPIPE:
        return _UNHEARD
    return _fail(f"cannot write the output: {error.strerror}; make room, or send it elsewhere", 2)


def _fail(error: object, code: int) -> int:
    with suppress(OSError):
        print(one_line(hide_credentials(f"interlock: {error}"), 4000), file=sys.stderr)
    return code
