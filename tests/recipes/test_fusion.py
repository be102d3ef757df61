"""A fusion in a minute: the model thinks when it is told to, and does not when told not to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "fusion.py"


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_after_a_fusion_the_model_is_in_the_mode_it_is_told(tmp_path: Path) -> None:
    found = tmp_path / "fusion.json"
    command = [sys.executable, str(BENCH), "--seeds", "0", "--steps", "220", "120", "0"]
    command += ["--problems", "128", "--runs", str(tmp_path / "runs"), "--json", str(found)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stderr[-4000:]
    (result,) = json.loads(found.read_text())["results"]
    before, after, by_template = (
        {exam["told"]: exam for exam in result[when]} for when in ("before", "tags", "template")
    )
    # Before, it thinks whatever it is told.
    assert min(before["/think"]["thinks"], before["/no_think"]["thinks"]) > 0.95
    assert after["/think"]["thinks"] > 0.95
    assert after["/no_think"]["thinks"] < 0.05
    assert after["enable_thinking = false"]["thinks"] < 0.05
    assert by_template["nothing"]["thinks"] > 0.95
    assert by_template["enable_thinking = false"]["thinks"] < 0.05
    # Thoughts are worth something, and are longer; of 128 problems, 3 deviations are 13 points.
    assert after["/think"]["accuracy"] > after["/no_think"]["accuracy"] + 0.13
    assert after["/think"]["length"] > 2 * after["/no_think"]["length"]
    free, *_, none = result["budgets"]
    assert (free["budget"], free["cut"]) == (None, 0)
    assert (none["budget"], none["cut"], none["thought"]) == (0, 1, 0)
    cuts = [exam["cut"] for exam in result["budgets"]]
    lengths = [exam["length"] for exam in result["budgets"]]
    assert cuts == sorted(cuts) and lengths == sorted(lengths, reverse=True)
    for exam in result["budgets"][1:]:
        assert exam["thought"] <= exam["budget"]
