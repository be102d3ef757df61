"""A tiny run that was stopped in its middle, after steps that no checkpoint holds yet."""

import os
import shutil
from pathlib import Path

import pytest
from stopping import train_until
from tiny_recipe import write_tiny_recipe

from interlock.config.reading import load_recipe
from interlock.config.schema import Recipe


@pytest.fixture(scope="module")
def recipe_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_recipe(tmp_path_factory.mktemp("home"), tiny_model)


@pytest.fixture(scope="module")
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file, ["stage.eval.every=0", "stage.eval.problems=2"])


@pytest.fixture(scope="module")
def _stopped_once(recipe: Recipe, recipe_file: Path) -> Path:
    train_until(recipe, run := recipe_file.with_name("run"), 5)
    return run


@pytest.fixture
def stopped(_stopped_once: Path, tmp_path: Path) -> Path:
    """Its newest checkpoint is of step 3, and steps 4 and 5 are logged."""
    return Path(shutil.copytree(_stopped_once, tmp_path / "run"))


@pytest.fixture
def certificates_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(tmp_path / "certificates"))
    return Path(os.environ["INTERLOCK_CERTIFICATES"])
