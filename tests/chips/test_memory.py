"""The most memory that this process had: pages that the test has touched and given back."""

import mmap
import subprocess
import sys

import pytest
import torch

from interlock.chips import device
from interlock.chips.memory import _BEGIN, MemoryWatch, resident_peak

SIZE = 64 << 20
ABOUT = pytest.approx(SIZE, rel=0.1)


def touched() -> mmap.mmap:
    """So many bytes, each page written: they are resident until it is closed."""
    pages = mmap.mmap(-1, SIZE)
    for place in range(0, SIZE, mmap.PAGESIZE):
        pages[place] = 1
    return pages


@pytest.mark.skipif(not _BEGIN.exists(), reason="the kernel's figure does not begin anew")
def test_what_was_given_back_is_in_one_look_and_not_in_the_next() -> None:
    watch = MemoryWatch(torch.device("cpu"))
    watch.look()
    before = watch.look().resident
    touched().close()
    most = watch.look()
    assert most.resident - before == ABOUT and most.chip == most.resident
    assert most.resident - watch.look().resident == ABOUT


def test_the_device_is_not_known_before_it_is_opened() -> None:
    found = MemoryWatch().look()
    assert found.chip == 0 and found.resident > 1 << 20


def test_without_the_kernels_figure_it_is_that_of_the_whole_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("interlock.chips.memory._STATUS", _BEGIN / "none")
    monkeypatch.setattr("interlock.chips.memory._BEGIN", _BEGIN / "none")
    touched().close()
    most = resident_peak()
    assert most > SIZE
    assert MemoryWatch().look().resident == MemoryWatch().look().resident == most


def test_a_devices_own_figures_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator that had 700 bytes at the most, and has 300."""
    now = {"most": 700}

    class Told:
        def max_memory_allocated(self, place: torch.device) -> int:
            return now["most"]

        def reset_peak_memory_stats(self, place: torch.device) -> None:
            now["most"] = 300

        def memory_allocated(self, place: torch.device) -> int:
            return 300

    monkeypatch.setattr(torch, "cuda", Told())
    place = torch.device("cuda", 0)
    assert [device.peak(place), device.peak(place)] == [700, 300]
    monkeypatch.delattr(Told, "max_memory_allocated")  # some tell of no peak
    monkeypatch.setattr(Told, "mem_get_info", lambda *_: (700, 1000), raising=False)
    assert device.peak(place) == 300
    assert device.peak(torch.device("cpu")) == 0


def test_what_another_process_had_is_not_this_ones() -> None:
    script = (
        "import subprocess, sys\n"
        "much = bytearray(600 << 20)\n"
        "print(subprocess.check_output([sys.executable, '-c', "
        "'from interlock.chips.device import most_resident as most; print(most())']).decode())\n"
    )
    most = int(subprocess.check_output([sys.executable, "-c", script]))
    assert 10 << 20 < most < 550 << 20  # torch is imported, which takes a part of it
