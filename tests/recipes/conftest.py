"""A run directory for the parts of a recipe."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """Its ledger is not synced: a power cut is not simulated."""
    with RunDir.create(tmp_path / "run", {}, {}) as made:
        made.ledger._database.execute("PRAGMA synchronous=OFF")
        yield made
