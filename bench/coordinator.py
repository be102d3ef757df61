"""What a group costs the coordinator, by the number of workers and the kind of fleet.

    python bench/coordinator.py [--workers 1 4 16 64] [--fleet local ray] [--json result.json]

    this process ── lines of JSON ──> one coordinator per fleet: Dispatcher ──> quick_worker × N
                 takes turns: every round asks local, then ray (or ray first)

The workers are real processes without an engine, which answer at once with groups of realistic
size, each a unit of its own. So the wall time is that of a machine on which coordinator and workers
have nothing else to do and share the cores; the CPU time is that of the coordinator's process alone
(user and system, all its threads; of these, the dispatcher's own). It counts sending, receiving,
decoding and checking every token, and, where it says ledger, making the group durable (one
transaction and fsync each, below TMPDIR); neither a tokenizer nor a verifier. The round trip is
that of one unit while all workers are idle, from `order` to the answer in the recipe's hands.

A worker is not counted before it has loaded and proven its weights; starting is shown by itself.
"""

import argparse
import importlib
import json
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

import quick_worker
from environment import environment
from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.fleet.base import Fleet, Spec
from interlock.records.metrics import WorkerState
from interlock.records.rl import Group, Problem, Sampling
from interlock.rundir.ledger import Ledger
from interlock.sync.store import Publisher
from interlock.workers.dispatcher import Dispatcher
from interlock.workers.generators import Purpose, Work, no_keep
from interlock.workers.protocol import Open

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests" / "support"))
readers: Any = importlib.import_module("readers")
START_S = 180.0  # for all workers of one fleet
ROUND_S = 120.0  # for one round of one fleet
FIGURES = {  # as reported by a coordinator: how the table calls it
    "cpu_ms": "CPU ms/group",
    "dispatcher_ms": "of it dispatcher",
    "wall_ms": "wall ms/group",
    "per_s": "groups/s",
    "trip_ms": "round trip ms",
}


class Coordinator:
    """A process with a dispatcher and its workers, which does as the lines it is sent say."""

    def __init__(self, kind: str, workers: int, options: argparse.Namespace) -> None:
        """Starts it; does not wait. `ready` does."""
        shape = [str(workers), str(options.completions), str(options.tokens)]
        self._name = f"{kind} × {workers}"
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", kind, *shape],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        self._began = time.perf_counter()

    def ready(self) -> float:
        """Seconds from the start until every worker had proven its weights."""
        self._answer(START_S + 60)
        return time.perf_counter() - self._began

    def round(self, groups: int, trips: int, ledger: bool) -> dict[str, float]:
        """See `measure`."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([groups, trips, ledger]) + "\n")
        return self._answer(ROUND_S + 30)

    def _answer(self, limit_s: float) -> dict[str, float]:
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                raise SystemExit(f"{self._name}: no answer within {limit_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} ended with {self._process.wait(10)}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def serve(kind: str, workers: int, completions: int, tokens: int) -> None:
    """The coordinator's process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coordinator-")))
        ledger = stack.enter_context(closing(Ledger(directory / "ledger.sqlite")))
        dispatcher, thread = stack.enter_context(opened(kind, workers, tokens, directory))

        def durable(found: Sequence[tuple[int, Group]]) -> None:
            ledger.arrive(0, found)

        answers.write("{}\n")
        first = 0
        for line in sys.stdin:
            groups, trips, kept = json.loads(line)
            dispatcher.keep = durable if kept else no_keep
            found = measure(dispatcher, thread, first, groups, trips, completions, tokens)
            first += groups + trips
            answers.write(json.dumps(found) + "\n")


@contextmanager
def opened(
    kind: str, workers: int, tokens: int, directory: Path
) -> Iterator[tuple[Dispatcher, int]]:
    """A dispatcher all of whose workers serve the weights, and its thread's number."""
    threads: list[int] = []

    def fleet() -> Fleet:
        threads.append(threading.get_ident())
        if kind == "local":
            from interlock.fleet.local import LocalFleet

            return LocalFleet()
        from interlock.fleet.ray import RayFleet

        return RayFleet()

    env = {"PYTHONPATH": str(HERE), "QUICK_TOKENS": str(tokens), "OMP_NUM_THREADS": "1"}
    canary = quick_worker.CANARY
    asked = {
        name: (
            Spec(name, "quick_worker", directory / "logs" / f"{name}.log", env=env),
            Open(name, "", GeneratorSettings(), None, "", canary),
        )
        for name in (f"w{number}" for number in range(workers))
    }
    settings = FleetSettings(start_s=START_S, silence_s=60)
    notes: list[str] = []
    dispatcher = Dispatcher(
        fleet,
        asked,
        settings,
        GuardSettings(),
        Publisher(str(directory / "sync"), 5),
        readers.Believer(lambda problem: quick_worker.PROMPT, quick_worker.VOCAB),
        lambda kind, message, worker: notes.append(f"{kind}: {message}"),
    )
    with closing(dispatcher):
        dispatcher.publish(0, {"w": torch.zeros(8)}, lambda text: quick_worker.TEXT)
        deadline = time.monotonic() + START_S
        while not all(
            facts.weight_version == 0 and facts.state is WorkerState.READY
            for facts in dispatcher.facts().values()
        ):
            if time.monotonic() > deadline:
                raise SystemExit(f"not all workers of {kind} came up: {notes[-5:]}")
            time.sleep(0.05)
        yield dispatcher, threads[0]
        if len(notes) > workers:
            raise SystemExit(f"a worker of {kind} failed: {notes[workers:]}")


def measure(
    dispatcher: Dispatcher,
    thread: int,
    first: int,
    groups: int,
    trips: int,
    completions: int,
    tokens: int,
) -> dict[str, float]:
    """FIGURES for `groups` groups ordered together, then `trips` ordered one by one.

    Their keys begin at `first`. `thread`: the dispatcher's.
    """
    sampling = Sampling(max_tokens=tokens)
    work = [
        Work(Purpose.TRAIN, (key,), (problem,), completions, sampling, key, exact=False)
        for key in range(first, first + groups + trips)
        for problem in [Problem(f"p{key}", [], "")]
    ]
    clock = time.pthread_getcpuclockid(thread)
    cpu, inside, wall = time.process_time(), time.clock_gettime(clock), time.perf_counter()
    take(dispatcher, work[:groups])
    wall = time.perf_counter() - wall
    cpu, inside = time.process_time() - cpu, time.clock_gettime(clock) - inside
    seconds = []
    for unit in work[groups:]:
        begun = time.perf_counter()
        take(dispatcher, [unit])
        seconds.append(time.perf_counter() - begun)
    return {
        "cpu_ms": 1e3 * cpu / groups,
        "dispatcher_ms": 1e3 * inside / groups,
        "wall_ms": 1e3 * wall / groups,
        "per_s": groups / wall,
        "trip_ms": 1e3 * statistics.median(seconds),
    }


def take(dispatcher: Dispatcher, work: list[Work]) -> None:
    """Order all of it and wait until it is back: each problem once, with a group."""
    dispatcher.order(work)
    missing = {key for unit in work for key in unit.keys}
    deadline = time.monotonic() + ROUND_S
    while missing:
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(missing)} of {len(work)} units did not come back")
        for outcome in dispatcher.collect(Purpose.TRAIN, 1.0):
            assert outcome.group is not None, outcome.reason
            missing.remove(outcome.key)


def compare(workers: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every fleet, with and without a ledger: they take turns in every round."""
    groups = max(options.groups, options.per_worker * workers)
    with ExitStack() as stack:
        sides = {}
        for kind in options.fleet:  # one starts after the other, so that each has the machine
            side = stack.enter_context(closing(Coordinator(kind, workers, options)))
            sides[kind] = side, side.ready()
        pairs = [(kind, ledger) for kind in sides for ledger in (False, True)]
        found: dict[tuple[str, bool], list[dict[str, float]]] = {pair: [] for pair in pairs}
        for kind, _ in pairs:
            sides[kind][0].round(min(groups, 4 * workers), 2, True)  # a first round, uncounted
        for number in range(options.rounds):
            for kind, ledger in pairs if number % 2 else pairs[::-1]:
                figures = sides[kind][0].round(groups, options.trips, ledger)
                found[kind, ledger].append(figures)
    return [
        {
            "workers": workers,
            "fleet": kind,
            "ledger": ledger,
            "groups": groups,
            "start_s": sides[kind][1],
            **{name: spread([figures[name] for figures in rounds]) for name in FIGURES},
        }
        for (kind, ledger), rounds in found.items()
    ]


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": values,
    }


def show(row: dict[str, Any]) -> str:
    cells = [f"{row['workers']}", row["fleet"], "yes" if row["ledger"] else "no"]
    for name in FIGURES:
        cells.append("{median:.3g} ({min:.3g}-{max:.3g})".format(**row[name]))
    return "| " + " | ".join([*cells, f"{row['start_s']:.1f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--fleet", nargs="+", default=["local", "ray"], choices=["local", "ray"])
    parser.add_argument("--completions", type=int, default=8, help="of a group")
    parser.add_argument("--tokens", type=int, default=256, help="of a completion")
    parser.add_argument("--groups", type=int, default=200, help="at least, in a round")
    parser.add_argument("--per-worker", type=int, default=20, help="groups at least, in a round")
    parser.add_argument("--trips", type=int, default=50, help="units sent one by one in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()

    print(
        f"groups of {options.completions} completions x {options.tokens} tokens, units of one "
        f"group, {options.rounds} rounds: median (min-max)"
    )
    heads = ["workers", "fleet", "ledger", *FIGURES.values(), "start s"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    rows = []
    for workers in options.workers:
        for row in compare(workers, options):
            rows.append(row)
            print(show(row), flush=True)
    facts = environment()
    print(json.dumps(facts))
    if options.json is not None:
        setting = {name: str(value) for name, value in vars(options).items()}
        figures = {"environment": facts, "setting": setting, "result": rows}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
