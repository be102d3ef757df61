"""Trackers have what metrics.jsonl has, and cost a run nothing, whatever they do."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
from running import ENVIRONMENT

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError
from interlock.processes.deadline import Deadline
from interlock.recipes import trackers
from interlock.recipes.sinks import Sinks
from interlock.recipes.trackers import Tracker, TrackerBackend
from interlock.recipes.train import train
from interlock.records.metrics import Event, RolloutMetrics, StepMetrics
from interlock.rundir import RunDir

SHORT = ["stage.steps=2", "stage.eval.every=0"]


class Kept(TrackerBackend):
    """Keeps what it is told; `wait` and `fail` come before that."""

    def __init__(self) -> None:
        self.said: list[tuple[int, object]] = []
        self.closed = False
        self.before: Callable[[], None] = lambda: None

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self.before()
        self.said.append((step, scalars))

    def tell(self, step: int, event: Event) -> None:
        self.said.append((step, event.kind))

    def close(self) -> None:
        self.closed = True


def step(stage: int, number: int, reward: float = 0.5) -> StepMetrics:
    return StepMetrics(stage=stage, step=number, rollout=RolloutMetrics(reward=reward))


def test_steps_of_all_stages_are_counted_on() -> None:
    backend, firsts = Kept(), []

    def opening(first: int) -> TrackerBackend:
        firsts.append(first)
        return backend

    tracker = Tracker("kept", [4, 3], opening)
    tracker.stage(1, "grpo", 2, 3)  # resumed there
    tracker.event(Event(0.0, "resumed", "resumed from stage 1 step 2"))
    tracker.step(step(1, 3, 0.25))
    tracker.done()
    assert firsts == [6] and backend.closed
    assert backend.said == [(6, "resumed"), (7, {"rollout/reward": 0.25, "stage": 1.0})]


def test_one_that_hangs_is_dropped_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_ROOM", 3)
    monkeypatch.setattr(trackers, "_DONE_S", 0.05)
    backend, taken, free = Kept(), threading.Event(), threading.Event()

    def hang() -> None:
        taken.set()
        free.wait()

    backend.before = hang
    tracker = Tracker("slow", [20], lambda first: backend)
    with RunDir.create(tmp_path / "run", {}, {}) as run:
        sinks = Sinks([tracker])
        with sinks.of(run):
            sinks.stage(0, "grpo", 0, 20)
            sinks.step(step(0, 0))
            assert taken.wait(60)
            for number in range(1, 11):  # three wait, seven find no room
                sinks.step(step(0, number))
            sinks.done()
        told = [event.message for event in run.events()]
    free.set()
    assert tracker.dropped == 7
    assert told == [
        "the sink Tracker raised BufferError: slow is slower than the run: points are dropped",
        "the sink Tracker raised 8 times",
    ]


def test_what_a_tracker_raises_is_told_and_the_next_point_is_tried() -> None:
    backend, both = Kept(), threading.Event()

    def refuse() -> None:
        assert both.wait(60)
        backend.before = lambda: None
        raise ConnectionError("no route")

    backend.before = refuse
    tracker = Tracker("far", [9], lambda first: backend)
    tracker.stage(0, "grpo", 0, 9)
    tracker.step(step(0, 1))
    tracker.step(step(0, 2))
    both.set()
    with pytest.raises(RuntimeError, match=r"^far: ConnectionError: no route$"):
        tracker.done()
    assert [place for place, _ in backend.said] == [2] and backend.closed


def test_several_that_hang_are_waited_for_by_one_deadline(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that does not is done, though its turn comes when the time is over."""
    hanging = {name: threading.Event() for name in ("trackio", "tensorboard")}
    free, closed, begun = threading.Event(), threading.Event(), list[float]()

    class Hanging(Kept):
        def __init__(self, name: str, place: trackers.TrackedRun) -> None:
            super().__init__()
            self.name = name

        def log(self, step: int, scalars: dict[str, float]) -> None:
            if self.name in hanging:
                hanging[self.name].set()
                free.wait()

        def close(self) -> None:
            if self.name not in hanging:
                closed.set()

    class Over(Deadline):
        def __init__(self, seconds: float) -> None:
            begun.append(seconds)

        @property
        def left(self) -> float:
            assert closed.wait(60)
            return 0.0

    for name in ("trackio", "tensorboard", "wandb"):
        monkeypatch.setitem(trackers.BACKENDS, name, partial(Hanging, name))
    monkeypatch.setattr(trackers, "find_spec", lambda name: find_spec("json"))
    monkeypatch.setattr(trackers, "Deadline", Over)
    recipe = load_recipe(tiny_recipe, ['log=["trackio", "tensorboard", "wandb"]'])
    told: list[str] = []
    made = trackers.trackers_of(recipe, tmp_path)
    for tracker in made:
        tracker.stage(0, "grpo", 0, 1)
        tracker.step(step(0, 1))
    assert all(taken.wait(60) for taken in hanging.values())
    for tracker in made[:2]:
        with pytest.raises(TimeoutError, match="lacks up to 1 points more") as error:
            tracker.done()
        told.append(str(error.value).partition(" ")[0])
    assert made[2]._thread is not None
    made[2]._thread.join(60)  # closed, it is about to end
    made[2].done()
    free.set()
    assert begun == [30.0] and told == ["trackio", "tensorboard"]


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()])
def test_one_that_would_end_its_thread_is_told_of_and_goes_on(end: BaseException) -> None:
    backend, both = Kept(), threading.Event()

    def leave() -> None:
        assert both.wait(60)
        backend.before = lambda: None
        raise end

    backend.before = leave
    tracker = Tracker("rude", [9], lambda first: backend)
    tracker.stage(0, "grpo", 0, 9)
    tracker.step(step(0, 1))
    tracker.step(step(0, 2))
    both.set()
    with pytest.raises(RuntimeError, match=f"^rude: {type(end).__name__}"):
        tracker.done()
    assert [place for place, _ in backend.said] == [2] and backend.closed


def test_one_that_cannot_be_opened_costs_a_run_nothing(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(place: trackers.TrackedRun) -> TrackerBackend:
        raise PermissionError("not yours")

    monkeypatch.setitem(trackers.BACKENDS, "tensorboard", broken)
    monkeypatch.setattr(trackers, "find_spec", lambda name: find_spec("json"))
    train(load_recipe(tiny_recipe, [*SHORT, 'log=["tensorboard"]']), tmp_path / "run")
    view = RunDir.read(tmp_path / "run")
    assert view.status == "finished"
    (event, *_) = [event for event in view.events() if event.kind == "sink_failed"]
    assert event.message.endswith("tensorboard: PermissionError: not yours")


def test_tensorboard_reads_what_was_logged(tiny_recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train(load_recipe(tiny_recipe, [*SHORT, 'log=["tensorboard"]']), run)
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    for name in ("rollout/reward", "update/grad_norm"):
        logged = [
            (line.step, pytest.approx(line.scalars()[name], rel=1e-6))
            for line in RunDir.read(run).metrics()
            if name in line.scalars()
        ]
        assert [(point.step, point.value) for point in read.Scalars(name)] == logged != []


def test_trackio_has_every_step_and_a_resumed_run_goes_on_in_it(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = pytest.importorskip("trackio")
    for module in (trackio, trackio.utils, trackio.sqlite_storage):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    run, told = tmp_path / "run", ['log=["trackio"]', "name=tracked"]
    train(load_recipe(tiny_recipe, [*SHORT, *told]), run)
    recipe = load_recipe(tiny_recipe, ["stage.steps=3", "stage.eval.every=0", *told])
    train(recipe, run, resume=True)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by id")
        found = [(name, at, msgspec.json.decode(text)) for name, at, text in rows]
    logged = RunDir.read(run).metrics()
    name = f"run-{(run / 'trackio.id').read_text()}"  # another run of that name has another id
    assert [(told, at) for told, at, _ in found] == [(name, line.step) for line in logged]
    for (_, _, scalars), line in zip(found, logged, strict=True):
        assert scalars == line.scalars() | {"stage": 0.0}


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ('["wandb", "wandb"]', 'log names "wandb" 2 times; once is enough'),
        ('["mlflow"]', "tensorboard, trackio, wandb"),
    ],
)
def test_mistakes_in_log(tiny_recipe: Path, log: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_recipe(tiny_recipe, [f"log={log}"])


def test_a_tracker_that_is_not_installed(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "interlock\[wandb\]"'):
        train(load_recipe(tiny_recipe, ['log=["wandb"]']), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_its_name_is_no_tracker(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wandb leaves one where it ran, which Python takes for a package."""
    if getattr(find_spec("wandb"), "origin", None):
        pytest.skip("wandb is installed")
    (tmp_path / "here" / "wandb").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "here")
    with pytest.raises(ConfigError, match=r'log names "wandb", which is not installed'):
        trackers.check(load_recipe(tiny_recipe, ['log=["wandb"]']))


HANGS = """
import atexit, time
from interlock.cli import command
from interlock.recipes import trackers

def hang(place):
    atexit.register(time.sleep, 600)  # as wandb waits for its process, which waits for a network
    time.sleep(600)

trackers.BACKENDS["tensorboard"] = hang
trackers.find_spec = lambda name: __import__("importlib.util").util.find_spec("json")
trackers._DONE_S = 0.5
command()
"""


@pytest.mark.timeout(200)
def test_one_that_hangs_does_not_keep_the_process(tiny_recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, "train", str(tiny_recipe), "--run", str(tmp_path / "r")]
    command += [*SHORT, 'log=["tensorboard"]']
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "tensorboard was not done after 0.5 s" in done.stdout
    assert RunDir.read(tmp_path / "r").status == "finished"
    assert done.stdout.rstrip().endswith("report.html")
