"""The shortest form of bench/planted_hack.py: a reward to be earned wrongly, and the alarm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "planted_hack.py"


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_alarm_comes_before_five_points_are_lost(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    command = [sys.executable, str(BENCH), "--arms", "clean", "mark", "--seeds", "0"]
    command += ["--steps", "14", "--runs", str(tmp_path / "runs"), "--json", str(told)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=480)
    assert ran.returncode == 0, ran.stderr[-4000:]
    clean, hacked = json.loads(told.read_text())["results"]
    assert clean["raised"] is None
    assert hacked["raised"] is not None and hacked["lost"] < 0.05
