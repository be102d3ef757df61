"""A link that is cut in the middle of a transfer: real processes, real sockets."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]


def test_it_hangs_until_its_deadline_and_says_where() -> None:
    if not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"]).returncode:
        pytest.skip("no network namespace can be made here")
    script = str(Path(__file__).with_name("cut_link.py"))
    done = subprocess.run(
        [*NAMESPACE, sys.executable, script, "3"], capture_output=True, text=True, timeout=350
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["hangs"] and found["error"].startswith("hangs in a transfer of "), found
    assert "not over after 3 s" in found["error"]
    assert found["up"] == found["down"] == 0
