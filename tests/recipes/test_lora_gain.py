"""The benchmark of what an adapter gains: its figures by hand, and its shortest form."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from byte_model import make_model, write_tokenizer

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def lora_gain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("lora_gain")


def test_the_bound_by_hand(lora_gain: ModuleType) -> None:
    # mean 0.9, deviation 0.1; t of 0.975 with 2 degrees is 4.3027: 0.9 - 4.3027 * 0.1 / sqrt(3)
    assert lora_gain.lower_bound([0.8, 0.9, 1.0]) == pytest.approx(0.65159, abs=1e-5)
    assert lora_gain.lower_bound([0.9]) is None


def test_a_seed_without_a_gain_in_full_has_no_figure_and_is_told(lora_gain: ModuleType) -> None:
    gains = [lora_gain.Gain(*row) for row in ((0, 0.5, 0.4), (1, 0.0, 0.3), (2, 0.4, 0.4))]
    assert [each.ratio for each in gains] == [pytest.approx(0.8), None, 1.0]
    # mean 0.9, deviation sqrt(0.02); t with 1 degree is 12.7062: 0.9 - 12.7062 * 0.1
    line = "adapter / full of 2 seeds: 0.900, at least -0.371 (95 %)"
    assert lora_gain.told(gains) == f"{line}; full training gained nothing with 1"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_seed_of_a_model_that_knows_nothing(tmp_path: Path) -> None:
    """Weights at random add nothing: neither side learns, and there is no ratio to tell."""
    write_tokenizer(tmp_path)
    model, figures = make_model(tmp_path), tmp_path / "figures.json"
    command = [sys.executable, str(BENCH / "lora_gain.py"), f"model.path={model}"]
    command += ["stage.steps=2", "stage.sampling.max_tokens=8", "--seeds", "0", "--problems", "16"]
    command += ["--runs", str(tmp_path / "runs"), "--json", str(figures)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=360)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.splitlines()[-2:] == [
        "seed 0: full +0.0%, adapter +0.0%",
        "adapter / full of 0 seeds: none; full training gained nothing with 0",
    ]
    told = json.loads(figures.read_text())
    assert told["seeds"] == [{"seed": 0, "full": 0.0, "lora": 0.0, "ratio": None}]
    lora = json.loads((tmp_path / "runs" / "lora-0" / "config.json").read_text())
    full = json.loads((tmp_path / "runs" / "full-0" / "config.json").read_text())
    rates = [each["stage"][0]["optimizer"]["lr"] for each in (lora, full)]
    assert rates == [pytest.approx(4.5e-4), 3e-5]
    assert (lora["learner"]["lora"]["rank"], full["learner"]["lora"]) == (16, None)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert again.stdout.splitlines() == ran.stdout.splitlines()[-2:]  # it is not run again
