"""Tests keep their names: workers of one suite must find the same ones, at whatever second they
look, and a name in a report must be one that can be run again.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def _names(seed: int) -> list[str]:
    """Of all tests, as an interpreter finds them that begins now and orders sets by `seed`."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", str(TESTS)]
    found = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return [line for line in found.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_no_name_depends_on_the_time_or_on_the_order_of_a_set() -> None:
    first = _names(1)
    assert len(first) > 9_000
    assert _names(2) == first
