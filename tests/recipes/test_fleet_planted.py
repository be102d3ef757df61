"""Workers with a broken engine in the way of a run: none of them teaches it anything."""

import sys
from pathlib import Path

import pytest

from interlock.config.reading import load_recipe
from interlock.errors import TrainingError
from interlock.recipes.train import train
from interlock.rundir import RunDir


def planted(tmp_path: Path, body: str) -> Path:
    """An "interpreter" whose worker is ours with `body` run before it serves."""
    module = tmp_path / "planted_worker.py"
    module.write_text(f"import interlock.workers.worker as worker\n{body}\nserve = worker.serve\n")
    python = tmp_path / "planted-python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" '
        "-m interlock.processes.entry planted_worker\n"
    )
    python.chmod(0o755)
    return python


# The planted engine answers with the weights it was opened with, whatever it is given.
STALE_DECODE = """
import copy
from interlock.engine.portable.engine import PortableEngine
opened = PortableEngine.__init__
def open_engine(self, *given):
    opened(self, *given)
    self._scheduler._decoder = copy.deepcopy(self.decoder)
PortableEngine.__init__ = open_engine
"""
# It keeps the new weights where they can be read, and computes with the old ones.
STALE_EVERYWHERE = """
from interlock.engine.portable.engine import PortableEngine
def load(self, tensors, version):
    self.kept, self.version = {n: t.clone() for n, t in tensors.items()}, version
PortableEngine.load = load
PortableEngine.held = lambda self: iter(self.kept.items())
"""
WRONG_COPY = """
from interlock.engine.portable.engine import PortableEngine
real = PortableEngine.load
def load(self, tensors, version):
    changed = {n: t.clone() for n, t in tensors.items()}
    changed["model.norm.weight"][3] += 1
    real(self, changed, version)
PortableEngine.load = load
"""


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (STALE_DECODE, "decode and prefill disagree"),
        (STALE_EVERYWHERE, "it still serves version"),
        (WRONG_COPY, "the weights it holds are not those of version"),
    ],
)
def test_a_planted_engine_with_stale_weights_is_caught(
    body: str, why: str, two_generators: Path, tmp_path: Path
) -> None:
    python = planted(tmp_path, body)
    overrides = [f"generator.python={python}", "generator.count=1", "fleet.failures=1"]
    overrides += ["stage.steps=4", "stage.eval.every=0"]
    overrides += ["stage.optimizer.lr=0.05", "stage.optimizer.warmup_steps=0"]
    with pytest.raises(TrainingError, match=f"no generator is left .*{why}"):
        train(load_recipe(two_generators, overrides), tmp_path / "run")
    view = RunDir.read(tmp_path / "run")
    assert view.status == "failed" and why in (view.manifest.reason or "")
    # What was learned before it was caught is kept, all of it from right weights.
    done = max((line.step for line in view.metrics()), default=0)
    assert [c.step for c in view.checkpoints()] == ([done] if done else [])
    assert len(view.ledger.steps()) == done


def test_a_worker_that_never_starts_ends_the_run_with_its_reason(
    two_generators: Path, tmp_path: Path
) -> None:
    python = planted(tmp_path, "raise SystemExit('libcann.so is missing')")
    overrides = [f"generator.python={python}", "generator.count=1", "fleet.failures=2"]
    with pytest.raises(TrainingError, match=r"no generator is left .*libcann\.so is missing"):
        train(load_recipe(two_generators, overrides), tmp_path / "run")
