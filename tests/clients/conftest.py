"""One real server for all clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_clients import MODEL, Client, Served, serving


@pytest.fixture(scope="session")
def served(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """float32, so that its log-probabilities are compared with those of an engine here; 64 places
    and a queue that four requests of 100 answers overflow.
    """
    log = tmp_path_factory.mktemp("clients") / "server.log"
    with serving(MODEL, log, "replica.dtype=float32", "replica.slots=64", "queue=200") as running:
        yield running


@pytest.fixture(scope="session")
def client(served: Served) -> Client:
    return Client(served)
