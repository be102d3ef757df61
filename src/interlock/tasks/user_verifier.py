"""A verifier from the user's own file, loaded in the worker processes only.

`verifier = "path/to/file.py:function"`; the function takes a problem as a plain dict (the fields of
records.Problem) and the answer's text, and returns what returned.py reads.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import msgspec

from interlock.config.schema import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks.jsonl import split_verifier


def open_verifier(task: TaskSettings) -> Callable[[Problem, str], Any]:
    path, name = split_verifier(task.options["verifier"])
    spec = importlib.util.spec_from_file_location("user_verifier", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"verifier file {path}: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise TaskError(f"verifier file {path} has no function {name!r}")
    return lambda problem, answer: function(msgspec.to_builtins(problem), answer)
