"""Freed memory is used again without new page faults, counted in a process of its own."""

import subprocess
import sys

import pytest

CHILD = """
import resource, sys
import torch
from interlock.chips import heap

if sys.argv[1] == "kept":
    heap.keep_freed()
for _ in range(10):  # alignment keeps the first block from fitting where it was
    torch.ones(10_000_000)  # 40 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone is told")
def test_freed_memory_is_used_again() -> None:
    assert faults("kept") < 100 < 10_000 < faults("given back")
