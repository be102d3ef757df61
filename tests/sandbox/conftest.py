"""The ways that isolate on this machine, each in turn."""

from collections.abc import Iterator

import pytest
from ways_here import usable

from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import WAYS, Way


@pytest.fixture(params=WAYS, ids=lambda kind: kind.name)
def way(request: pytest.FixtureRequest) -> Way:
    return usable(request.param)


@pytest.fixture
def slot() -> Iterator[Slot]:
    with Slot() as lent:
        yield lent
