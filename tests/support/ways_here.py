"""Ways to isolate that serve on the machine of a test; without them a test is skipped, and why."""

import functools

import pytest

from interlock.errors import SandboxError
from interlock.sandbox.canary import fault, open_sandbox
from interlock.sandbox.ways import Bubblewrap, Landlock, Way


@functools.cache
def _tried(kind: type[Bubblewrap] | type[Landlock]) -> tuple[Way, str | None]:
    way = kind()
    return way, way.why_not() or fault(way)


def usable(kind: type[Bubblewrap] | type[Landlock]) -> Way:
    way, why = _tried(kind)
    if why is not None:
        pytest.skip(f"{way.name} does not isolate here: {why}")
    return way


def any_usable() -> Way:
    try:
        return open_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))
