"""Seconds from a fault until it is noticed and until the work is whole again, fault by fault.

    python bench/recovery.py [--repeats 5] [--only killed hung] [--learner] [--json result.json]

    dispatcher ──units──> a: faulty_worker, hit at its first unit, load or start
                    └───> b: well (in one column; in the other a is alone)

Every case is a dispatcher over real processes. Four units of two problems are ordered; `a` is given
the first of them. A fault's time is what the worker itself wrote down the moment before.

    noticed      fault -> the event that names it
    whole        fault -> the last ordered group is back, hence also that of the unit that was lost
    worker back  fault -> `a` serves proven weights again
    lost         groups that never came, came twice, or differ from what any worker answers

`b` is idle when the fault strikes, so that `whole` beside it is without the wait for a free worker.
Where the run has to stop instead (no worker is left), `whole` is fault -> the error with its
reason, and what was not made is left to the resumed run. A link that is cut once is mended inside
the worker, which is no event. The workers have no engine and start in a fraction of a second: with
a real one, add its own start to whatever includes a restart. --learner kills a real run on a tiny
model at random moments and resumes it at once; `whole` is then kill -> the first new step.
"""

import argparse
import importlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace

from cut_link import Link, link
from environment import environment
from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.errors import TrainingError
from interlock.fleet.base import Spec
from interlock.fleet.local import LocalFleet
from interlock.models.fetch import find_model
from interlock.records.metrics import WorkerState
from interlock.records.rl import Group, Problem, Sampling
from interlock.rundir import RunDir
from interlock.sync.store import Publisher
from interlock.workers.dispatcher import Dispatcher
from interlock.workers.generators import Purpose, Work
from interlock.workers.protocol import Canary, Open

HERE = Path(__file__).resolve().parent
SUPPORT = HERE.parent / "tests" / "support"
sys.path.append(str(SUPPORT))
stub: Any = importlib.import_module("stub_worker")
readers: Any = importlib.import_module("readers")

LIMIT_S = 60.0  # for one case
UNITS, PROBLEMS, COMPLETIONS, SEED = 4, 2, 3, 11
CANARY = Canary(list(range(20)), [[1, 2], [3]], 4)
ALWAYS = list(range(2, 100))


class Case(NamedTuple):
    fault: str
    plan: dict[str, list[int]]  # of the stub: which of its units, loads or starts
    at: str  # what is under way: "unit", "load", "link", "start", or "quarantine"
    bounded_by: tuple[str, ...]  # settings, beside the time to start a process
    settings: Mapping[str, Any] = MappingProxyType({})
    every_worker: bool = False
    cuts: int = 0  # of the link, one after the other
    noted: bool = True


RESTART = ("backoff_s",)
CASES = (
    Case("killed (SIGKILL)", {"kill": [1]}, "unit", RESTART),
    Case("exits", {"exit": [1]}, "unit", RESTART),
    Case("hung: alive, never done", {"hang": [1]}, "unit", ("unit_s", *RESTART), {"unit_s": 2.0}),
    Case("frozen (SIGSTOP)", {"freeze": [1]}, "unit", ("silence_s", *RESTART), {"silence_s": 2.0}),
    Case("garbage: no message", {"noise": [1]}, "unit", RESTART),
    Case("garbage: a logprob of nan", {"nan": [1]}, "unit", RESTART),
    Case("dies while loading weights", {"die_loading": [2]}, "load", RESTART),
    Case("link cut once during the fetch", {}, "link", (), cuts=1, noted=False),
    Case("link cut again at the second try", {}, "link", RESTART, cuts=2),
    Case("serves stale weights", {"stale": [2]}, "load", RESTART),
    Case("refuses to start once", {"refuse": [1]}, "start", RESTART),
    Case("quarantined at work", {"hang": [1]}, "quarantine", ()),
    Case(
        "all gone: killed, then refuse to start",
        {"kill": [1], "refuse": ALWAYS},
        "unit",
        ("failures", *RESTART),
        {"failures": 3},
        every_worker=True,
    ),
)


class Found(NamedTuple):
    """Seconds since the fault; None where it did not happen."""

    noticed: float | None
    whole: float
    back: float | None
    lost: int
    stopped: str  # the reason, where the run stopped


class Scene:
    """A dispatcher over `a` and the well `others`, and when what was seen."""

    def __init__(
        self,
        case: Case,
        others: int,
        settings: FleetSettings,
        directory: Path,
        served: Link | None = None,
    ) -> None:
        """`served`: over what link the workers read their weights; None: they read none."""
        self.noticed: float | None = None
        self.arrived: list[tuple[float, int, Group]] = []
        self.version = 0
        self._case, self._directory, self._link = case, directory, served
        plans = {"a": case.plan} | {
            f"b{number}": case.plan if case.every_worker else {} for number in range(others)
        }
        self.dispatcher = Dispatcher(
            LocalFleet,
            {name: self._worker(name, plan) for name, plan in plans.items()},
            replace(settings, **case.settings),
            GuardSettings(),
            Publisher(str(directory / "sync"), 5),
            readers.Believer(stub.prompt, stub.VOCAB),
            self._note,
        )
        self.dispatcher.keep = self._keep

    def publish(self, number: int) -> None:
        self.version = number
        tensors = {"w": torch.full((8,), float(number))}
        self.dispatcher.publish(number, tensors, lambda text: stub.score(number, len(text)))

    def ready(self, name: str) -> bool:
        """Whether the worker serves the weights and has nothing to do."""
        facts = self.dispatcher.facts()[name]
        return facts.state is WorkerState.READY and facts.weight_version == self.version

    def all_ready(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not all(self.ready(name) for name in self.dispatcher.facts()):
            assert time.monotonic() < deadline, self.dispatcher.facts()
            time.sleep(0.01)

    def order(self) -> None:
        keys = [tuple(range(at * PROBLEMS, (at + 1) * PROBLEMS)) for at in range(UNITS)]
        sampling = Sampling(max_tokens=8)
        self.dispatcher.order(
            [
                Work(
                    Purpose.TRAIN,
                    unit,
                    tuple(Problem(f"problem {key}", [], "") for key in unit),
                    COMPLETIONS,
                    sampling,
                    SEED,
                    exact=True,
                )
                for unit in keys
            ]
        )

    def struck(self) -> float:
        """When the first fault struck `a`."""
        path, deadline = self._directory / "a.struck", time.monotonic() + LIMIT_S
        while True:
            if self._link is not None and self._link.struck:
                return self._link.struck[0]
            if path.exists() and "\n" in (text := path.read_text()):
                return float(text.split()[0])
            assert time.monotonic() < deadline, f"{self._case.fault}: no fault struck"
            time.sleep(0.005)

    def missing(self) -> int:
        return UNITS * PROBLEMS - len({key for _, key, _ in self.arrived})

    def spoilt(self) -> int:
        """Groups that are doubled or wrong."""
        keys = [key for _, key, _ in self.arrived]
        wrong = sum(
            group.problem.id != f"problem {key}"
            or group.completions
            != stub.answer(group.problem, COMPLETIONS, group.completions[0].weight_version, SEED)
            for _, key, group in self.arrived
        )
        return len(keys) - len(set(keys)) + wrong

    def _worker(self, name: str, plan: dict[str, list[int]]) -> tuple[Spec, Open]:
        env = {
            "PYTHONPATH": f"{HERE}:{SUPPORT}",
            "STUB_FAULTS": json.dumps(plan),
            "STUB_STATE": str(self._directory / f"{name}.json"),
        }
        spec = Spec(name, "faulty_worker", self._directory / f"{name}.log", env=env)
        store = "" if self._link is None else f"{self._link.url}/{name}"
        return spec, Open(name, "", GeneratorSettings(), None, store, CANARY)

    def _note(self, kind: str, message: str, worker: str) -> None:
        if worker == "a" and kind != "worker_started" and self.noticed is None:
            self.noticed = time.monotonic()

    def _keep(self, found: Sequence[tuple[int, Group]]) -> None:
        now = time.monotonic()
        self.arrived += [(now, key, group) for key, group in found]


def suffer(case: Case, others: int, settings: FleetSettings) -> Found:
    """One fault, from a fresh fleet."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recovery-")))
        served = stack.enter_context(link(directory / "sync")) if case.at == "link" else None
        scene = Scene(case, others, settings, directory, served)
        stack.enter_context(closing(scene.dispatcher))
        scene.publish(0)
        if case.at != "start":
            scene.all_ready()
        if served is not None:
            served.cuts = case.cuts
        if case.at in ("load", "link"):
            scene.publish(1)
        scene.order()
        fault = scene.struck()
        if case.at == "quarantine":
            fault = time.monotonic()
            scene.dispatcher.quarantine("a", "its numbers are off", ())
        return watch(scene, case, fault)


def watch(scene: Scene, case: Case, fault: float) -> Found:
    """Until all is well again, or the run stops."""
    back: float | None = None
    returns = case.at != "quarantine" and not case.every_worker
    deadline = time.monotonic() + LIMIT_S
    while True:
        if time.monotonic() > deadline:
            lost = scene.missing() + scene.spoilt()
            return Found(after(fault, scene.noticed), LIMIT_S, after(fault, back), lost, "")
        try:
            scene.dispatcher.collect(Purpose.TRAIN, 0.01)
        except TrainingError as error:
            whole = time.monotonic() - fault
            return Found(after(fault, scene.noticed), whole, None, scene.spoilt(), str(error))
        seen = scene.noticed is not None or not case.noted
        if back is None and seen and scene.ready("a"):
            back = time.monotonic()
        if seen and not scene.missing() and (back is not None or not returns):
            break
    whole = max(0.0, max(at for at, _, _ in scene.arrived) - fault)
    return Found(after(fault, scene.noticed), whole, after(fault, back), scene.spoilt(), "")


def after(fault: float, moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - fault)


def learner_killed(repeats: int) -> list[Found]:
    """SIGKILL a run at random moments and resume it at once; at the end its ledger is checked."""
    running: Any = importlib.import_module("running")
    moments, found = random.Random(0), []
    with tempfile.TemporaryDirectory(prefix="recovery-") as directory:
        recipe, run = tiny_recipe(Path(directory)), Path(directory) / "run"
        process, last = running.start(recipe, run), 0
        for _ in range(repeats):
            step = last + moments.randint(2, 4)
            running.wait_for(lambda step=step: running.logged(run, step), process)
            time.sleep(moments.uniform(0, 0.2))
            fault = time.monotonic()
            process.kill()
            process.communicate()
            last = max(line.step for line in RunDir.read(run).metrics())
            process = running.start(recipe, run, "--resume")
            running.wait_for(lambda last=last: running.logged(run, last + 1), process)
            found.append(Found(None, time.monotonic() - fault, None, 0, ""))
        process.kill()
        process.communicate()
        view = RunDir.read(run)
        steps = [step for _, step in view.ledger.steps()]
        used = [sequence for step in steps for sequence in view.ledger.sequences(0, step)]
        lost = len(used) - len(set(used)) + len(set(range(len(used))) - set(used))
        return [each._replace(lost=lost) for each in found]


def tiny_recipe(directory: Path) -> Path:
    """GRPO without an end on two random layers, with two generators on this machine."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = directory / "model"
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(settings).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(find_model("smollm2-135m-instruct", print) / name, model / name)
    reward = "def reward(problem, answer):\n    return sum(map(ord, answer)) % 17 / 16\n"
    (directory / "reward.py").write_text(reward)
    rows = ({"question": f"Say {number}.", "answer": str(number)} for number in range(40))
    problems = directory / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = directory / "recipe.toml"
    recipe.write_text(
        f"""
name = "tiny"
checkpoint_every = 3
model.path = "{model}"
learner.dtype = "float32"
fleet = {{ kind = "local", unit = 2 }}

[[generator]]
count = 2
dtype = "float32"
slots = 8
env = {{ OMP_NUM_THREADS = "1" }}

[[stage]]
kind = "grpo"
steps = 10000
problems_per_step = 4
completions = 4
staleness = 0
sampling.max_tokens = 12
optimizer = {{ lr = 1e-3 }}
eval = {{ every = 0, problems = 5 }}

[stage.task]
name = "jsonl"
held_out = 8
options = {{ path = "{problems}", verifier = "{directory}/reward.py:reward" }}
"""
    )
    return recipe


def summary(found: Sequence[Found]) -> dict[str, Any]:
    stopped = {each.stopped for each in found if each.stopped}
    row: dict[str, Any] = {"lost": sum(each.lost for each in found), "stopped": sorted(stopped)}
    for name in ("noticed", "whole", "back"):
        seconds = [value for each in found if (value := getattr(each, name)) is not None]
        row[name] = spread(seconds) if seconds else None
    return row


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": values,
    }


def cell(figure: dict[str, Any] | None, stopped: bool = False) -> str:
    if figure is None:
        return "–"
    return ("stops " * stopped) + "{median:.2f} ({min:.2f}-{max:.2f})".format(**figure)


def show(fault: str, bounds: str, alone: dict[str, Any], beside: dict[str, Any] | None) -> str:
    cells = [fault, bounds]
    for row in (alone, beside):
        if row is None:
            cells += ["–", "–"]
        else:
            cells += [cell(row["noticed"]), cell(row["whole"], bool(row["stopped"]))]
    cells += [cell(alone["back"]), str(alone["lost"] + (beside["lost"] if beside else 0))]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backoff-s", type=float, default=0.2)
    parser.add_argument("--only", nargs="+", default=[], help="faults whose name begins so")
    parser.add_argument("--learner", action="store_true", help="kill a real run as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()

    settings = FleetSettings(
        kind="local",
        start_s=20,
        load_s=20,
        unit_s=20,
        silence_s=20,
        backoff_s=options.backoff_s,
        requalify=0,
    )
    wanted = [
        case
        for case in CASES
        if not options.only or any(case.fault.startswith(name) for name in options.only)
    ]
    print(f"median of {options.repeats} (min-max), seconds; a sign of life every 0.2 s")
    heads = ["fault", "bounded by", "noticed", "whole", "beside another: noticed", "whole"]
    heads += ["worker back", "groups lost"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    rows: dict[str, Any] = {}
    for case in wanted:
        used = replace(settings, **case.settings)
        bounds = {name: getattr(used, name) for name in case.bounded_by}
        text = ", ".join(f"{name} {value:g}" for name, value in bounds.items())
        alone, beside = (
            summary([suffer(case, others, settings) for _ in range(options.repeats)])
            for others in (0, 1)
        )
        rows[case.fault] = {"settings": bounds, "alone": alone, "beside another": beside}
        print(show(case.fault, text, alone, beside), flush=True)
    if options.learner:
        row = summary(learner_killed(options.repeats))
        rows["learner killed, resumed at once"] = {"settings": {}, "alone": row}
        print(show("learner killed, resumed at once", "", row, None), flush=True)
    for fault, row in rows.items():
        for column in ("alone", "beside another"):
            for reason in row.get(column, {}).get("stopped", []):
                print(f"{fault}, {column}: {reason}")
    facts = environment()
    print(json.dumps(facts))
    if options.json is not None:
        setting = {name: str(value) for name, value in vars(options).items()}
        figures = {"environment": facts, "setting": setting, "result": rows}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
