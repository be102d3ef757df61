"""What is left of processes that should be gone."""

import time
from pathlib import Path

DEADLINE_S = 30.0


def gone(*pids: int, seconds: float = DEADLINE_S) -> bool:
    """Wait until none of them runs; whether that came to pass."""
    deadline = time.monotonic() + seconds
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(runs, pids))


def runs(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
