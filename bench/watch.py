"""The live page of a long run: how soon it has all of it, how soon a new step, and in what memory.

    a run's metrics, repeated to N steps ──> interlock watch ──> GET /  and  GET /stream
    one line more, a few times ───────────────────────────────────────> on the stream

Opened: from the request for the page until the stream has told of step N, by a server that was just
started. An update: from the line's write until the stream tells it. What a browser then takes to
draw is not in it.

    python bench/watch.py RUN --steps 1000 100000 --json watch.json
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPResponse
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from environment import environment

INTERLOCK = Path(sys.executable).with_name("interlock")
_DEADLINE = 60.0


@dataclass(frozen=True)
class Result:
    """Seconds; megabytes of the server's memory with all of the run, and after the updates."""

    steps: int
    opened: float
    updates: list[float]
    memory: float
    memory_after: float


def lengthened(run: Path, steps: int, directory: Path) -> bytes:
    """A copy of a run, with its steps again and again. -> the next line

    Its ledger is that of the run; the page asks it for the newest step alone.
    """
    shutil.copytree(run, directory, ignore=shutil.ignore_patterns("weights", "checkpoints"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    lines = [line for line in lines if line["step"]]
    with (directory / "metrics.jsonl").open("wb") as file:
        for step in range(1, steps + 2):
            line = lines[step % len(lines)] | {"stage": 0, "step": step}
            written = json.dumps(line).encode() + b"\n"
            if step <= steps:
                file.write(written)
    return written


def told(stream: HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in stream:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def until(news: Iterator[dict[str, Any]], step: int) -> None:
    """Raises StopIteration when the stream ends before it tells of the step."""
    while next(news).get("step") != step:
        pass


def memory(server: "subprocess.Popen[str]") -> float:
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measured(run: Path, steps: int, updates: int) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "run"
        line = lengthened(run, steps, directory)
        server = subprocess.Popen(
            [str(INTERLOCK), "watch", str(directory)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            began = time.monotonic()
            while True:
                try:
                    urlopen(url, timeout=_DEADLINE).close()
                    break
                except URLError:  # it has told its name, and is about to listen
                    time.sleep(0.01)
            with urlopen(f"{url.rstrip('/')}/stream", timeout=_DEADLINE) as stream:
                news = told(stream)
                until(news, steps)
                opened, least = time.monotonic() - began, memory(server)
                seconds = []
                for number in range(updates):
                    step = steps + 1 + number
                    with (directory / "metrics.jsonl").open("ab") as file:
                        began = time.monotonic()
                        file.write(line.replace(b'"step": %d' % (steps + 1), b'"step": %d' % step))
                    until(news, step)
                    seconds.append(time.monotonic() - began)
            return Result(steps, opened, seconds, least, memory(server))
        finally:
            server.kill()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run, whose steps are repeated")
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    found = [
        measured(given.run, steps, given.updates)
        for _ in range(given.rounds)
        for steps in given.steps
    ]
    print("| steps | opened, s | an update, ms | memory, MB | after |\n|---|---|---|---|---|")
    for steps in given.steps:
        rows = [each for each in found if each.steps == steps]
        opened = sorted(each.opened for each in rows)
        updates = sorted(1000 * second for each in rows for second in each.updates)
        print(
            f"| {steps:,} | {opened[0]:.2f}-{median(opened):.2f}-{opened[-1]:.2f} | "
            f"{updates[0]:.0f}-{median(updates):.0f}-{updates[-1]:.0f} | "
            f"{median(each.memory for each in rows):.0f} | "
            f"{median(each.memory_after for each in rows):.0f} |"
        )
    if given.json:
        results = [asdict(each) for each in found]
        given.json.write_text(json.dumps({"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()
