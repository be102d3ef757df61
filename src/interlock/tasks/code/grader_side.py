"""What runs inside the sandbox of a grader: the hidden tests, against a stand-in for the program.

    {"tests", "preamble", "entry", "seed", "nonce"} ──> b"c" + {"args": …, "kwargs": …}, a call
                        program's reply, as it came ──>
                                                    … ──> b"d" + {"nonce", "outcome", "why"}

`candidate(…)` sends plain data and returns plain data, or raises what the program raised; that is
compared here, out of the program's reach. Standard library only.
"""

import builtins
import random
from typing import Any

from interlock.tasks.code.wire import NotPlain, Wire, dumped, loaded, taken_over

PASSED, WRONG, BROKEN = "passed", "wrong", "broken"  # the last: the tests themselves are at fault
_WORDS = 300


class NoValue(BaseException):
    """The program gave no value and raised nothing that a test may expect. No test catches it."""


class RaisedByProgram(Exception):
    """Of a class that is not one of Python's own."""


class Candidate:
    """The program's function, as the tests call it."""

    def __init__(self, wire: Wire) -> None:
        self.calls = 0
        self._wire = wire

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = dumped({"args": list(args), "kwargs": kwargs})
        self.calls += 1
        self._wire.send(b"c" + call)
        try:
            reply = loaded(self._wire.receive())
        except NotPlain as error:
            raise NoValue(f"the program sent {error}") from None
        match reply:
            case {"value": value}:
                return value
            case {"odd": str(what)}:
                raise NoValue(f"it returned {what[:_WORDS]}, which is no plain data")
            case {"raised": [str(name), str(words)]}:
                raise _error(name, words)
        raise NoValue("the program sent no message")


def main() -> None:
    wire = taken_over()
    given = loaded(wire.receive())
    outcome, why = examined(given, Candidate(wire))
    wire.send(b"d" + dumped({"nonce": given["nonce"], "outcome": outcome, "why": why[:_WORDS]}))


def examined(given: dict[str, Any], candidate: Candidate) -> tuple[str, str]:
    """ProgramEnd, and why; of tests that draw at random the draws are those of the seed."""
    random.seed(given["seed"])
    entry = given["entry"]
    scope: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(given["preamble"], "preamble", "exec"), scope)
        scope[entry] = candidate
        exec(compile(given["tests"], "tests", "exec"), scope)
        scope[entry] = candidate
        if callable(check := scope.get("check")):
            check(candidate)
    except NoValue as error:
        return WRONG, str(error)
    except BaseException as error:
        # A test that fails over what the program returned is the program's; one before that is not.
        words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return (WRONG if candidate.calls and isinstance(error, Exception) else BROKEN), words
    if not candidate.calls:
        return BROKEN, f"they never call {entry}"
    return PASSED, ""


def _error(name: str, words: str) -> BaseException:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        # These would end a loop of the tests over map(candidate, …) as if all had been well.
        if issubclass(kind, StopIteration | StopAsyncIteration):
            return RaisedByProgram(f"{name}: {words}")
        if not issubclass(kind, Exception):
            return NoValue(f"it raised {name}")
        try:
            return kind(words)
        except TypeError:  # UnicodeDecodeError and its like want more
            pass
    return RaisedByProgram(f"{name[:_WORDS]}: {words}")
