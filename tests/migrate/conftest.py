"""A tiny run that was stopped in its middle, after steps that no checkpoint holds yet."""

import os
import shutil
from pathlib import Path

import pytest
from stopping import train_until

from interlock.config.reading import load_recipe
from interlock.config.schema import Recipe


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe, ["stage.eval.every=0", "stage.eval.problems=2"])


@pytest.fixture(scope="module")
def _stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def stopped(recipe: Recipe, _stopped_once: Path, tmp_path: Path) -> Path:
    """Its newest checkpoint is of step 3, and steps 4 and 5 are logged."""
    if not _stopped_once.exists():
        train_until(recipe, _stopped_once, 5)
    return Path(shutil.copytree(_stopped_once, tmp_path / "run"))


@pytest.fixture
def certificates_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(tmp_path / "certificates"))
    return Path(os.environ["INTERLOCK_CERTIFICATES"])
