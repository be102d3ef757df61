"""Our speed beside other busy processes, as a share of what is fair, and what that costs alone.

    python bench/contended.py [--beside 1 2 4] [--rounds 5] [--json result.json]

    ours     the engine decoding, the learner updating, as a command does it: threads follow what
             others leave, and spin little
    fixed    the same with as many threads as processors, always
    libgomp  the same with libgomp's own 300,000 spins, alone
    beside   processes that only count, started for one measurement and killed after it

Fair is the fixed one's speed alone x threads / (threads + processes beside), where there are as
many threads as processors. Sides take turns inside every round, alone and beside; all shares are of
one round. What is timed is a second time, when the number of threads has settled.
Others who use the machine are to be of lower priority: `nice -n -10` before the command.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

from environment import environment
from figures import summary
from interlock.processes.channel import Channel
from interlock.processes.child import Child, inherited
from interlock.processes.spins import few_spins

THREADS = len(os.sched_getaffinity(0))
FIXED = {"OMP_NUM_THREADS": str(THREADS)}
SIDES = {
    "ours": few_spins(),
    "fixed": few_spins() | FIXED,
    "libgomp": {"GOMP_SPINCOUNT": "300000"} | FIXED,
}
WORK = ("decode", "learn")
COUNT = "while True: pass"
MOST_S = 600.0  # for one measurement


def serve(channel: Channel) -> None:
    """A side: answers every name of some work with the seconds that it took."""
    import torch

    from interlock.chips import heap
    from interlock.models.fetch import find_model
    from learner import groups_of
    from rollout import Tokenizer, prompts_of
    from rollout import interlock_side as decoder_side
    from workload import MODEL

    heap.keep_freed()
    model, cpu = find_model(MODEL, lambda line: None), torch.device("cpu")
    decode = decoder_side(model, prompts_of(Tokenizer.load(model), 16), 1, 16, cpu, "float32")
    with tempfile.TemporaryDirectory() as scratch:
        work: dict[str, Callable[[], Any]] = {
            "decode": lambda: decode(12, 0),
            "learn": updates(model, groups_of(1, 4, 40, 24), Path(scratch)),
        }
        while (name := channel.receive()) is not None:
            began = time.perf_counter()
            work[name.decode()]()
            channel.send(repr(time.perf_counter() - began).encode())


def updates(model: Path, groups: list[Any], scratch: Path) -> Callable[[], Any]:
    """Three of them, as the steps of a run."""
    import torch

    from interlock.config.losses import LossSettings
    from interlock.config.schema import LearnerSettings
    from interlock.config.stages import OptimizerSettings
    from interlock.learner.learner import Learner
    from interlock.models.checkpoint import load_decoder
    from interlock.recipes.sinks import Sink
    from interlock.recipes.update_threads import UpdateThreads
    from interlock.rundir import RunDir

    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    learner = Learner(decoder, LearnerSettings(dtype="float32"), OptimizerSettings(lr=1e-6), 1000)
    loss = LossSettings(correction="off")
    run = RunDir.create(scratch / "run", {}, {})
    threads, step = UpdateThreads(0, learner, run, Sink()), count(1)

    def three() -> None:
        for number in islice(step, 3):
            with threads(number):
                learner.step(groups, loss)

    return three


def started(variables: dict[str, str]) -> Child:
    """A side that has done everything once."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    child = Child("contended", {**inherited(), "PYTHONPATH": path, **variables})
    for name in WORK:
        asked(child, name)
    return child


def asked(child: Child, name: str) -> float:
    return float(child.ask(name.encode(), MOST_S, 1000))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that only count."""
    found = [subprocess.Popen([sys.executable, "-S", "-c", COUNT]) for _ in range(processes)]
    try:
        time.sleep(0.2 * bool(count))  # until they do
        yield
    finally:
        for process in found:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--beside", type=int, nargs="*", default=[1, 2, 4], metavar="PROCESSES")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        sides = {n: stack.enter_context(closing(started(each))) for n, each in SIDES.items()}
        for number in range(1, given.rounds + 1):
            seconds: dict[tuple[str, str, int], float] = {}
            for name in list(sides) if number % 2 else list(sides)[::-1]:
                for beside in (0, *(given.beside if name != "libgomp" else ())):
                    with busy(beside):
                        for work in WORK:
                            asked(sides[name], work)
                            taken = seconds[name, work, beside] = asked(sides[name], work)
                            print(f"{work}, {name}, beside {beside}: {taken:.2f} s", flush=True)
            for (name, work, beside), taken in seconds.items():
                found.setdefault(f"{work}, {name}, beside {beside}: s", []).append(taken)
                if beside:
                    fair = seconds["fixed", work, 0] * (THREADS + beside) / THREADS
                    title = f"{work}, {name}, beside {beside}: share of what is fair"
                    found.setdefault(title, []).append(fair / taken)
            for work in WORK:
                cost = seconds["ours", work, 0] / seconds["libgomp", work, 0] - 1
                found.setdefault(f"{work}, lost alone", []).append(cost)
                for beside in given.beside:
                    times = seconds["fixed", work, beside] / seconds["ours", work, beside]
                    title = f"{work}, beside {beside}: times as fast as fixed"
                    found.setdefault(title, []).append(times)
            print(f"round {number} of {given.rounds}", flush=True)
    result = {name: summary(values) for name, values in sorted(found.items())}
    for name, row in result.items():
        print(f"{name}: median {row['median']:.3f}, {row['min']:.3f} to {row['max']:.3f}")
    if given.json is not None:
        setting = {name: str(value) for name, value in vars(given).items()}
        figures = {"environment": environment(), "setting": setting, "result": result}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
