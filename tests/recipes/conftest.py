"""A run directory for the parts of a recipe, and a recipe for whole runs of a fleet."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from distilling import a_model

from interlock.rundir import RunDir

FLEET = """
fleet = { kind = "local", unit = 2, backoff_s = 0.1 }

[[generator]]
count = 2
env = { OMP_NUM_THREADS = "1" }
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """Its ledger is not synced: a power cut is not simulated."""
    with RunDir.create(tmp_path / "run", {}, {}) as made:
        made.ledger._database.execute("PRAGMA synchronous=OFF")
        yield made


@pytest.fixture
def two_generators(tiny_recipe: Path) -> Path:
    """The tiny recipe with two worker processes, synchronous."""
    text = tiny_recipe.read_text().replace("[[generator]]\n", FLEET)
    path = tiny_recipe.with_name("two.toml")
    path.write_text(text.replace('kind = "grpo"\n', 'kind = "grpo"\nstaleness = 0\n'))
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_model(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_model(tmp_path_factory.mktemp("models") / "teacher", hidden_size=48)
