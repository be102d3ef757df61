"""Loads a task's, a verifier's or a reward's own module, whose packages may be missing."""

import importlib
from types import ModuleType

from interlock.errors import TaskError


def module_of(name: str, who: str, extra: str = "tasks") -> ModuleType:
    """The module `name`, which `who` needs; `extra` of interlock brings its packages.

    Raises TaskError for one that is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TaskError(
            f"{who} needs the package {error.name!r}; pip install 'interlock[{extra}]'"
        ) from None
