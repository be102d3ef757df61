"""What a sandbox costs, and whether bombs in some fail others.

python bench/sandbox.py --starts 300 --runs 1000

Every start is that of an empty Python program, from the call to the answer; taking turns with
starts of the interpreter alone. An answer that a verifier judges costs less: a fork of a process
that is in the sandbox already; taking turns with the same verifier outside. Then bombs go off in
slots of their own, all the time, while programs that print 42 run in another: each must print it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from environment import environment
from interlock.config.tasks import TaskSettings
from interlock.records.rl import Problem
from interlock.sandbox.canary import open_sandbox
from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.running import NotStarted, run
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import Way
from interlock.tasks.verifier_pool import VerifierPool

_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
_LIMITS = ResourceLimits(processes=16)


def starts(way: Way, count: int) -> dict[str, list[float]]:
    """Seconds of every start: in the sandbox, and of the interpreter alone."""
    found: dict[str, list[float]] = {"sandbox": [], "interpreter": []}
    with Slot() as slot:
        for _ in range(count):
            began = time.perf_counter()
            assert run(way, "", slot=slot).well
            found["sandbox"].append(time.perf_counter() - began)
            began = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)
            found["interpreter"].append(time.perf_counter() - began)
    return found


def answers(count: int) -> dict[str, list[float]]:
    """Seconds of every verdict of a verifier that does nothing: in the sandbox, and outside."""
    found: dict[str, list[float]] = {"answer, sandbox": [], "answer": []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as pools:
        verifier = Path(folder) / "verifier.py"
        verifier.write_text("def verify(problem, answer): return answer == '42'")
        settings = TaskSettings("jsonl", {"path": "unused", "verifier": f"{verifier}:verify"})
        inside = pools.enter_context(VerifierPool(replace(settings, sandbox="always")))
        outside = pools.enter_context(VerifierPool(settings))
        for _ in range(count):
            for name, pool in zip(found, (inside, outside), strict=True):
                began = time.perf_counter()
                assert pool.verify([(Problem("p", [], "42"), "42")])[0].right
                found[name].append(time.perf_counter() - began)
    return found


def false_failures(way: Way, runs: int, bombs: int) -> dict[str, int]:
    """How many of `runs` honest programs failed while bombs went off in other slots."""
    over = threading.Event()
    exploded = []

    def explode() -> None:
        while not over.is_set():
            with Slot() as slot:
                run(way, _BOMB, slot=slot, limits=_LIMITS, deadline_s=0.3)
            exploded.append(1)

    threads = [threading.Thread(target=explode) for _ in range(bombs)]
    for thread in threads:
        thread.start()
    wrong = not_started = 0
    try:
        with Slot() as slot:
            for _ in range(runs):
                try:
                    ran = run(way, "print(42)", slot=slot, limits=_LIMITS, deadline_s=60)
                    wrong += ran.output != b"42\n"
                except NotStarted as error:
                    print(error)
                    not_started += 1
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return {"runs": runs, "bombs": len(exploded), "wrong": wrong, "not started": not_started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=300)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--bombs", type=int, default=2, help="going off at a time")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    way = open_sandbox()
    seconds = starts(way, arguments.starts) | answers(arguments.starts)
    milliseconds = {
        name: [round(1e3 * each(found), 1) for each in (min, statistics.median, max)]
        for name, found in seconds.items()
    }
    figures = {
        "environment": environment(),
        "way": way.name,
        "milliseconds: least, median, most": milliseconds,
        "after bombs": false_failures(way, arguments.runs, arguments.bombs),
    }
    print(json.dumps(figures, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
