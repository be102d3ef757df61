"""What bench/credit_rules.py counts, and its shortest form."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from distilling import a_model

from interlock.config.reading import load_recipe
from interlock.recipes import shipped

BENCH = Path(__file__).parents[2] / "bench"
DEMO = Path(shipped.__file__).parent / "demo.toml"


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("credit_rules")


def test_every_rule_is_one_that_a_recipe_can_have(rules: ModuleType) -> None:
    """Each differs from all others in what it computes, and takes as many steps."""
    found = {}
    for rule, settings in rules.RULES.items():
        told = [*rules.COMMON, *(f"stage.{each}" for each in settings)]
        (stage,) = load_recipe(DEMO, told).stage
        assert (stage.steps, stage.problems_per_step, stage.updates_per_step) == (15, 8, 4)
        found[rule] = (stage.loss, stage.extra_groups)
    assert len(found) == 9
    assert all(a != b for x, a in found.items() for y, b in found.items() if x != y)


def test_the_table_has_mean_and_deviation_of_the_seeds(
    rules: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        rules.Result("GRPO", seed, share, 0.01, 960, 3.0) for seed, share in enumerate((0.5, 0.7))
    ]
    rules.show(rows)
    # The deviation of 0.5 and 0.7 is sqrt(2 * 0.1 ** 2 / 1) = 0.1414.
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| GRPO | 60.0% ± 14.1% | 50.0%, 70.0% | 1.00% | 960 | 3.0 |"
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_rules_on_a_tiny_model(tmp_path: Path) -> None:
    model, told = a_model(tmp_path / "model"), tmp_path / "told.json"
    command = [sys.executable, str(BENCH / "credit_rules.py"), "--rules", "GRPO", "V3.2"]
    command += ["--seeds", "0", "--problems", "32", "--runs", str(tmp_path / "runs")]
    command += ["--json", str(told), f"model.path={model}", "stage.steps=2"]
    command += ["learner.dtype=float32", "generator.0.dtype=float32"]
    # It is never right: something else has to teach it.
    command += ["stage.task.reward=[{kind='accuracy'}, {kind='length', free=1, most=32}]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr[-4000:]
    rows = json.loads(told.read_text())["results"]
    assert [(row["rule"], row["answers"]) for row in rows] == [("GRPO", 128), ("V3.2", 128)]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert again.stdout.splitlines()[-4:] == ran.stdout.splitlines()[-4:]  # nothing is run again
