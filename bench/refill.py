"""Groups a second of an asynchronous run whose answers differ in length, and slots without work.

    python bench/refill.py [--workers 2] [--slots 16] [--unit 1] [--rounds 3] [--json result.json]

    dispatcher ──units──> refill_worker × N: the real worker, which writes down every step
               ──a version every --every groups──> fetched, loaded and proven meanwhile

The model is tiny and ends an answer after 40 tokens on average, after 400 at the latest. All work
is ordered at once, so work waits until the last unit is given out; everything but `tokens_per_s` is
of the time until then.

    tokens_per_s       of all workers, from the first step to the last group
    tokens_per_cpu_s   of a second of a worker's CPU: what it is where the machine does other work
    idle_steps         share of the slots that got no token in a step
    idle_time          share of the slots' time in which they were not computed: besides, while
                       weights are loaded and proven, and between units
    late_ms            from the step that finished a group until it is durable, median (90 %)
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch

from environment import environment
from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.engine.portable.engine import PortableEngine
from interlock.fleet.base import Spec
from interlock.fleet.local import LocalFleet
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Group, Problem, Sampling
from interlock.sync.store import Publisher
from interlock.workers.dispatcher import Dispatcher
from interlock.workers.generators import Purpose, Work
from interlock.workers.protocol import Canary, Open
from interlock.workers.reading import Reader

HERE = Path(__file__).resolve().parent
SUPPORT = HERE.parent / "tests" / "support"
MEAN, LONGEST = 40, 400  # tokens of an answer
VOCAB = 300  # of the model
LIMIT_S = 300.0
_HARMLESS = ("worker_started", "weights_whole")  # every weight of so small a model changes
CANARY = Canary(list(range(40, 104)), [[1, 2, 3], [4]], 16)


def make_model(directory: Path) -> Path:
    """About one in MEAN of its tokens ends the answer."""
    sys.path.append(str(SUPPORT))
    import byte_model  # type: ignore[import-not-found]

    byte_model.write_tokenizer(directory)
    byte_model.make_model(directory, hidden_size=64, max_position_embeddings=1024)
    ends = [256, *range(0, 256, MEAN)]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return directory


class Step(NamedTuple):
    """One step of an engine; moments of time.monotonic()."""

    begin: float
    end: float
    drawn: float  # tokens: of one sequence each
    cpu: float  # seconds of the process until then


class Run:
    """A dispatcher over real workers; `arrived` are moment and key of every group."""

    def __init__(self, model: Path, directory: Path, options: argparse.Namespace) -> None:
        self.arrived: list[tuple[float, int, Group]] = []
        self.names = [f"w{number}" for number in range(options.workers)]
        self._directory, self._options = directory, options
        self._notes: list[str] = []
        self._tokenizer = Tokenizer.load(model)
        self._decoder = load_decoder(model, torch.float32, torch.device("cpu"))
        settings = GeneratorSettings(dtype="float32", slots=options.slots)
        store = str(directory / "store")
        workers = {}
        for name in self.names:
            log = str(directory / f"{name}.steps")
            env = {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "STEP_LOG": log}
            spec = Spec(name, "refill_worker", directory / f"{name}.log", env=env)
            workers[name] = spec, Open(name, str(model), settings, None, store, CANARY)
        self.dispatcher = Dispatcher(
            LocalFleet,
            workers,
            FleetSettings(kind="local"),
            GuardSettings(),
            Publisher(store, 5),
            Reader(self._tokenizer, VOCAB),
            lambda kind, message, worker: self._notes.append(f"{kind}: {message}"),
        )
        self.dispatcher.keep = self._keep

    def publish(self, number: int) -> None:
        noise = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in self._decoder.parameters() if number else ():
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 1e-3)
        tensors = {name: view.clone() for name, view in self._decoder.tensors().items()}
        engine = PortableEngine(self._decoder, self._tokenizer, 1)
        self.dispatcher.publish(number, tensors, lambda text: engine.score(text).logprobs)

    def work(self, keys: Sequence[int]) -> Work:
        problems = tuple(
            Problem(f"p{key}", [{"role": "user", "content": f"Say {key}."}], "") for key in keys
        )
        rule = Sampling(max_tokens=LONGEST)
        return Work(
            Purpose.TRAIN, tuple(keys), problems, self._options.completions, rule, 1, exact=False
        )

    def waiting(self) -> int:
        """Units that no worker holds."""
        return len(self.dispatcher._pool._queue.waiting)

    def steps(self) -> list[list[Step]]:
        """Worker by worker."""
        return [[Step(*map(float, line)) for line in lines] for lines in self._lines("step")]

    def finished(self) -> dict[int, float]:
        """When the last sequence of each problem was finished; of one made again, the last time."""
        pairs = [pair for lines in self._lines("done") for pair in lines]
        return {int(problem.removeprefix("p")): float(when) for problem, when in pairs}

    def check(self, begun: float) -> None:
        """Stop when a worker failed, or it takes too long."""
        if failed := [note for note in self._notes if not note.startswith(_HARMLESS)]:
            raise SystemExit(f"a worker failed: {failed[0]}")
        if time.monotonic() > begun + LIMIT_S:
            raise SystemExit(f"not done in {LIMIT_S:g} s")

    def _lines(self, kind: str) -> list[list[list[str]]]:
        found = []
        for name in self.names:
            lines = (self._directory / f"{name}.steps").read_text().splitlines()
            found.append([words[1:] for line in lines if (words := line.split())[0] == kind])
        return found

    def _keep(self, found: Sequence[tuple[int, Group]]) -> None:
        now = time.monotonic()
        self.arrived += [(now, key, group) for key, group in found]


def measure(model: Path, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="refill-") as directory:
        run = Run(model, Path(directory), options)
        with closing(run.dispatcher):
            run.publish(0)
            begun = time.monotonic()
            while any(f.weight_version is None for f in run.dispatcher.facts().values()):
                time.sleep(0.01)
                run.check(begun)
            begun = time.monotonic()
            keys = range(options.problems)
            units = [keys[at : at + options.unit] for at in range(0, len(keys), options.unit)]
            run.dispatcher.order([run.work(unit) for unit in units])
            number, given = 0, 0.0
            while len(run.arrived) < options.problems:
                number = advance(run, number, options.every)
                given = given or (0.0 if run.waiting() else time.monotonic())
                run.dispatcher.collect(Purpose.TRAIN, 0.001)
                run.check(begun)
            return figures(run, begun, given, options.slots) | {"versions": number}


def advance(run: Run, number: int, every: int) -> int:
    """Publish the version that is due; the number of the last one."""
    if len(run.arrived) < (number + 1) * every:
        return number
    run.publish(number + 1)
    return number + 1


def figures(run: Run, begun: float, given: float, slots: int) -> dict[str, float]:
    """`given`: when the last unit was given out."""
    lengths = [len(c.tokens) for _, _, group in run.arrived for c in group.completions]
    free = steps = computed = counted = cpu = tokens = 0.0
    for own in run.steps():
        inside = [each for each in own if each.begin >= begun and each.end <= given]
        free += sum(slots - each.drawn for each in inside)
        steps += slots * len(inside)
        computed += sum((each.end - each.begin) * each.drawn for each in inside)
        counted += slots * (given - inside[0].begin)
        cpu += inside[-1].cpu - inside[0].cpu
        tokens += sum(each.drawn for each in inside[1:])
    finished = run.finished()
    late = sorted(1e3 * (when - finished[key]) for when, key, _ in run.arrived if when <= given)
    last = max(when for when, _, _ in run.arrived)
    return {
        "tokens_per_s": sum(lengths) / (last - begun),
        "tokens_per_cpu_s": tokens / cpu,
        "idle_steps": free / steps,
        "idle_time": 1 - computed / counted,
        "late_ms": statistics.median(late),
        "late_90_ms": late[9 * len(late) // 10],
        "mean": statistics.fmean(lengths),
        "longest": max(lengths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--problems", type=int, default=240)
    parser.add_argument("--completions", type=int, default=8, help="of each problem")
    parser.add_argument("--unit", type=int, nargs="+", default=[1], help="problems given together")
    parser.add_argument("--every", type=int, default=24, help="groups to a weight version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()

    found: dict[int, list[dict[str, float]]] = {unit: [] for unit in options.unit}
    with tempfile.TemporaryDirectory(prefix="refill-") as directory:
        model = make_model(Path(directory))
        for _ in range(options.rounds):
            for unit, rows in found.items():  # they take turns
                options.unit = unit
                rows.append(measure(model, options))
                print(json.dumps({"unit": unit} | rows[-1]), flush=True)
    result = {
        unit: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for unit, rows in found.items()
    }
    for unit, row in result.items():
        print(f"unit {unit}, median:", json.dumps({k: round(v, 4) for k, v in row.items()}))
    facts = environment()
    print(json.dumps(facts))
    if options.json is not None:
        setting = {name: str(value) for name, value in vars(options).items()}
        kept = {"environment": facts, "setting": setting, "result": result, "rounds": found}
        options.json.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
