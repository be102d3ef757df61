"""What runs inside the sandbox of a program: loads what the model wrote, and calls its function.

    {"variants": […], "entry": name} ──> the first variant that compiles is run
    {"args": …, "kwargs": …}         ──> {"value": …} │ {"raised": [type, words]} │ {"odd": what}

Nothing here is trusted by anybody: the program may do to this process what it likes. Standard
library only.
"""

import sys
import types
from typing import Any

from interlock.tasks.code.wire import NotPlain, dumped, loaded, taken_over

_WORDS = 300  # characters of an exception


def main() -> None:
    wire = taken_over()
    given = loaded(wire.receive())
    try:
        function = _function(given["variants"], given["entry"])
    except BaseException as error:  # also what would end the process: it is asked no more
        wire.send(dumped(_raised(error)))
        return
    wire.send(dumped({"value": None}))
    while True:
        try:
            call = loaded(wire.receive())
        except EOFError:
            return
        try:
            reply = {"value": function(*call["args"], **call["kwargs"])}
        except BaseException as error:
            reply = _raised(error)
        try:
            data = dumped(reply)
        except NotPlain as error:
            data = dumped({"odd": str(error)})
        wire.send(data)


def _function(variants: list[str], entry: str) -> Any:
    code = _compiled(variants)
    module = types.ModuleType("answer")  # not __main__: what runs there only when started is left
    sys.modules["answer"] = module
    exec(code, vars(module))
    if entry not in vars(module):
        raise NameError(f"it defines no {entry}")
    return vars(module)[entry]


def _compiled(variants: list[str]) -> types.CodeType:
    first: BaseException | None = None
    for source in variants:
        try:
            return compile(source, "answer", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            first = first or error
    raise first or SyntaxError("there is no program")


def _raised(error: BaseException) -> dict[str, Any]:
    name = type(error).__name__[:_WORDS]
    try:
        words = str(error)[:_WORDS]
    except BaseException:
        words = ""
    return {"raised": [name, words]}
