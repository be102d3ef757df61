"""What others hold, by the kernel's figures."""

import os
import time
from pathlib import Path

import pytest

from interlock.processes import others
from interlock.processes.others import Others


def stat(path: Path, *rows: str) -> None:
    """user nice system idle iowait irq softirq steal guest, of each processor."""
    lines = [f"cpu{number} {row}" for number, row in enumerate(rows)]
    path.write_text("\n".join(["cpu  1 1 1 1 1 1 1 1 1", *lines, "intr 1 2 3", ""]))


@pytest.mark.parametrize(("nice", "held"), [(0, 0.4), (-5, 0.4), (5, 0.6)])
def test_what_is_neither_idle_nor_nice_nor_our_own(
    nice: int, held: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, own, path = 100.0, 7.0, tmp_path / "stat"
    monkeypatch.setattr(others, "_STAT", path)
    monkeypatch.setattr(others.time, "monotonic", lambda: now)
    monkeypatch.setattr(others.time, "process_time", lambda: own)
    monkeypatch.setattr(others.os, "nice", lambda by: nice)
    monkeypatch.setattr(others.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(others.os, "sched_getaffinity", lambda pid: {0, 2})
    stat(path, "0 0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0 0", "5 0 0 0 0 0 0 0 0")
    found = Others()
    # In 10 s: 8 s, and 1 + 2 (nice) + 1 s, 6 s of them ours; cpu1 is not, guests are users.
    now, own = 110.0, 13.0
    stat(path, "700 0 100 150 50 0 0 0 700", "900 0 0 0 0 0 0 0 0", "105 200 0 500 100 0 0 100 0")
    assert found.seconds == 10.0
    assert found.held() == pytest.approx(held)


def test_without_such_figures_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "_STAT", Path("/none"))
    found = Others()
    while not found.seconds:
        time.sleep(0.001)
    assert found.held() == 0.0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no such figures")
def test_the_kernel_has_such_figures() -> None:
    assert others._busy() > 0.0
