"""The most memory that this process had at a time since it was last asked.

    /proc/self/status ── VmHWM, begun anew by /proc/self/clear_refs ──┬─> MemoryPeak
    device.peak ──────── the allocator's own, begun anew ─────────────┘

Where the kernel does not let its figure begin anew, it is that of the process's whole life. Of an
engine that computes in processes of its own, such as vLLM's, nothing is seen.
"""

from contextlib import suppress
from pathlib import Path

import torch

from interlock.chips import device
from interlock.records.cost import MemoryPeak

_STATUS, _BEGIN = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESIDENT_PEAK = "5"  # of proc(5): what clear_refs is told for that figure alone


class MemoryWatch:
    """Of this process; one of them, as whoever asks begins the figures anew."""

    def __init__(self, place: torch.device | None = None) -> None:
        """`place`: the device that it computes on; None: not yet known."""
        self.place = place

    def look(self) -> MemoryPeak:
        """Since the last look. Never raises."""
        most = resident_peak()
        with suppress(OSError):
            _BEGIN.write_text(_RESIDENT_PEAK)
        place = self.place
        if place is None:
            return MemoryPeak(0, most)
        return MemoryPeak(most if place.type == "cpu" else device.peak(place), most)


def resident_peak() -> int:
    """Bytes, since the kernel's figure was begun anew."""
    with suppress(OSError, ValueError, IndexError):
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    return device.most_resident()
