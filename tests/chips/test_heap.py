"""Freed memory is used again without new page faults, or given back when told: counted in
processes of their own.
"""

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

RELEASE = """
from pathlib import Path
import torch
from interlock.chips import heap

def resident():  # MB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1000

heap.keep_freed()
before = resident()
blocks = [torch.ones(1_000_000) for _ in range(100)]  # 4 MB each
del blocks[::2]  # every other one, so that no end of the heap is free
held = resident() - before
heap.release()
print(held, resident() - before)
"""


def child(*arguments: str) -> str:
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def faults(how: str) -> int:
    return int(child(CHILD, how))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone is told")
def test_freed_memory_is_used_again() -> None:
    assert faults("kept") < 100 < 10_000 < faults("given back")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone is told")
def test_what_is_free_between_blocks_in_use_is_given_back() -> None:
    held, left = map(int, child(RELEASE).split())
    assert held > 380  # freed, but kept
    assert 180 < left < 240  # half of the blocks
