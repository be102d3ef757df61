"""The options of a task, read into a typed struct. Unknown names and wrong types are errors."""

import difflib
import re
from collections.abc import Collection
from typing import TypeVar

import msgspec

from interlock.config.reading import explain
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError

_MISSING = re.compile(r"the setting '(\w+)' is missing$")
Options = TypeVar("Options", bound=msgspec.Struct)


def read_options(task: TaskSettings, kind: type[Options]) -> Options:
    """`task.options` as a `kind`. Raises TaskError, which names the task and the option."""
    known = kind.__struct_fields__
    for name in task.options:
        if name not in known:
            raise unknown(f"option of task {task.name!r}", name, known)
    try:
        return msgspec.convert(task.options, kind, strict=True)
    except msgspec.ValidationError as error:
        why = explain(str(error), task.options, kind)
        if lacking := _MISSING.search(why):
            why += f"; give it as options.{lacking[1]}"
        raise TaskError(f"task {task.name!r}: {why}") from None


def unknown(what: str, name: str, known: Collection[str]) -> TaskError:
    """The error for a name that nobody knows, with the nearest names or, failing that, all."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    return TaskError(f"unknown {what}: {name!r}; {hint}")
