"""Runs tests in a process of their own, which may then have the simulated device: it can be set up
once per process, and never taken down.
"""

import os
import subprocess
import sys
from pathlib import Path


def check(file: Path, timeout_s: float = 240.0) -> None:
    """Run the tests in `file`, which no other run collects; fails with what they say."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    environment.pop("PYTEST_XDIST_WORKER", None)
    ran = subprocess.run(
        [*command, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-20000:] + ran.stderr[-4000:]
    assert " passed" in ran.stdout
