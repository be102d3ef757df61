"""A minute of clients that leave whenever they like: nothing is left of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from byte_model import make_model, write_tokenizer

BENCH = Path(__file__).parents[2] / "bench" / "serve_soak.py"
# Of what is in memory. Half an hour is to have 2 %; half a minute is mostly warming up, and what is
# kept of every request would be seen all the same: it is a thousand of them.
FLAT = 0.05


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_minute_of_clients_that_leave_takes_no_memory_and_no_slot(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    model, told = make_model(tmp_path, max_position_embeddings=2048), tmp_path / "told.json"
    given = {"minutes": 1, "streams": 64, "model": model, "sample": 1, "tokens": 64, "cache": 4}
    given |= {"log": tmp_path / "serve.log", "json": told}
    command = [sys.executable, str(BENCH)]
    command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=360)
    assert ran.returncode == 0, ran.stderr[-4000:]
    result = json.loads(told.read_text())
    assert (result["lost"], result["why"]) == (0, [])
    empty = {"waiting": 0, "running": 0, "outstanding_tokens": 0, "restarts": 0}
    assert result["left"] == empty
    assert set(result["ways"]) == {"stays", "slow", "several", "leaves", "at once", "stuck"}
    assert set(result["growth"]) == {"server", "worker-0", "worker-1"}
    assert {name: each for name, each in result["growth"].items() if each > FLAT} == {}
