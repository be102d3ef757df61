"""Loads a task's, a verifier's or a reward's own module, whose packages may be missing."""

import importlib
from types import ModuleType

from interlock.errors import TaskError


def module_of(name: str, who: str) -> ModuleType:
    """The module `name`; `who` needs it. Raises TaskError for a package that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TaskError(
            f"{who} needs the package {error.name!r}; pip install 'interlock[tasks]'"
        ) from None
