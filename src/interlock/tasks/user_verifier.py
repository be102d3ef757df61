"""A verifier from the user's own file, loaded in the worker processes only.

`verifier = "path/to/file.py:function"`; the function takes a problem as a plain dict (the fields of
records.Problem) and the answer's text, and returns what returned.py reads. It runs as a script does
that is started in its own folder: it may import and open what lies beside it.
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import msgspec

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem


def split_verifier(verifier: str) -> tuple[Path, str]:
    """ "file.py:function" as (path, function name). Raises TaskError."""
    path, colon, function = verifier.rpartition(":")
    if not colon or not function.isidentifier():
        raise TaskError(f"verifier = {verifier!r}: write path/to/file.py:function")
    if not Path(path).is_file():
        raise TaskError(f"verifier = {verifier!r}: there is no file {path}")
    return Path(path), function


def sources(verifier: str) -> list[Path]:
    """The verifier's file, and those beside it that it imports. Raises TaskError.

    Nothing is run: what a file imports under a condition counts, what it opens does not.
    """
    path, _ = split_verifier(verifier)
    finder = ModuleFinder(path=[str(path.resolve().parent)])
    with suppress(SyntaxError):  # told when it is loaded
        finder.run_script(str(path))
    found = (getattr(module, "__file__", None) for module in finder.modules.values())
    return [path, *sorted(Path(each) for each in found if each and Path(each) != path)]


def open_verifier(task: TaskSettings) -> Callable[[Problem, str], Any]:
    path, function = split_verifier(task.options["verifier"])
    path = path.resolve()
    os.chdir(path.parent)
    return loaded(f"{path}:{function}", "user_verifier")


def loaded(verifier: str, called: str) -> Callable[[Problem, str], Any]:
    """The function of "file.py:function", whose module is then `called`. Raises TaskError."""
    path, name = split_verifier(verifier)
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(called, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"verifier file {path}: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise TaskError(f"verifier file {path} has no function {name!r}")
    try:
        inspect.signature(function).bind({}, "")
    except TypeError as error:
        raise TaskError(
            f"verifier {name!r} cannot be called with the row and the answer's text: {error}"
        ) from None
    except ValueError:  # written in C, and silent about what it takes
        pass
    return lambda problem, answer: function(msgspec.to_builtins(problem), answer)
