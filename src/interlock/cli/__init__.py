"""The command line: `interlock VERB …`.

arguments.py ──> verbs.py ──> one line for every mistake, and the exit code
"""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn

from interlock.cli.arguments import parse
from interlock.errors import InterlockError, UserError, VoidResult
from interlock.text import hide_credentials, one_line

# What is wrong with a name that was given, wherever it is first looked at.
_OF_A_NAME = (errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM)
# How often libgomp, which torch brings, looks whether the other threads are done before it sleeps.
# It looks 300,000 times by itself: beside as many busy processes as there are cores it
# holds a core while the thread it waits for has none, up to 5 times its fair share of the time.
_SPINS = "10000"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one verb and exit.

    0: done. 1: it failed. 2: the user's mistake. 3: done, and nothing was learned or judged by it.
    130: interrupted.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # and not nohup's
            signal.signal(number, signal.default_int_handler)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that cannot show a character shows a "?"
            stream.reconfigure(errors="replace")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)  # before torch is there, and for workers
    try:
        given = parse(arguments)
        given.verb(given)
    except UserError as error:
        _fail(error, 2)
    except VoidResult as error:
        _fail(error, 3)
    except InterlockError as error:
        _fail(error, 1)
    except ModuleNotFoundError as error:
        if (error.name or "interlock").partition(".")[0] == "interlock":
            raise
        _fail(f"this needs the package {error.name!r}; pip install 'interlock[demo]'", 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away, as `| head` does
        sys.exit(0)
    except OSError as error:
        if error.filename is None or error.errno not in _OF_A_NAME:
            raise
        _fail(f"{one_line(repr(error.filename), 80)}: {error.strerror}; give another path", 2)
    sys.exit(0)


def _fail(error: object, code: int) -> NoReturn:
    print(hide_credentials(f"interlock: {error}"), file=sys.stderr)
    sys.exit(code)
