"""Disturbs a run at random, from a seed: kills, stops, slows, corrupts."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from running import workers_of


class Chaos:
    """`strike` does one thing to a running run; `done` counts what was really done."""

    KINDS = ("kill", "stop", "slow", "corrupt")

    def __init__(self, run: Path, seed: int) -> None:
        self.run, self.done = run, Counter[str]()
        self._random = random.Random(seed)

    def strike(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether there was something to strike."""
        before = self.done.total()
        kind = self._random.choice(self.KINDS)
        workers = sorted(pid for pid, state in workers_of(process).items() if state != "T")
        if kind == "corrupt":
            self.done["corrupt"] += self._corrupt()
        elif workers:
            victim = self._random.choice(workers)
            with suppress(ProcessLookupError):
                self._signal(kind, victim)
                self.done[kind] += 1
        return self.done.total() > before

    def _signal(self, kind: str, victim: int) -> None:
        if kind == "kill":
            os.kill(victim, signal.SIGKILL)
            return
        os.kill(victim, signal.SIGSTOP)  # "stop": for good
        if kind == "slow":
            time.sleep(self._random.uniform(0.2, 0.8))
            os.kill(victim, signal.SIGCONT)

    def _corrupt(self) -> bool:
        """Turn one bit of the newest payload, or cut it off there."""
        payloads = [*(self.run / "sync").rglob("*.delta"), *(self.run / "sync").rglob("*.anchor")]
        with suppress(FileNotFoundError, ValueError):
            path = max(payloads, key=lambda payload: payload.stat().st_mtime_ns)
            data = bytearray(path.read_bytes())
            at = self._random.randrange(len(data))
            if self._random.random() < 0.5:
                data[at] ^= 1 << self._random.randrange(8)
            else:
                del data[at:]
            path.write_bytes(data)
            return True
        return False
