"""The figures of a run in the trackers that a recipe names: `log = ["tensorboard", "trackio"]`.

    Sink.step, event ── never waits ──> queue of 1,024 ── own thread ──> TrackerBackend.log, tell
                            └── full: the point is dropped, and counted

A tracker is a copy: all of it stands in metrics.jsonl and events.jsonl. So it may neither break a
run nor slow it: what it raises, and what it was too slow for, are events of the run (sinks.py).
"""

import queue
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from interlock.config.reading import to_tree
from interlock.config.schema import Recipe, TrackerName
from interlock.config.secrets import redacted
from interlock.errors import ConfigError
from interlock.processes.deadline import Deadline
from interlock.recipes.sinks import Sink
from interlock.records.metrics import Event, StepMetrics
from interlock.text import described

_ROOM = 1024  # points that may wait
_DONE_S = 30.0  # for all that waits when the run ends, of every tracker; then it is left behind


class TrackedRun(NamedTuple):
    """What a backend is told of the run."""

    directory: Path
    project: str  # the recipe's name
    config: dict[str, Any]  # the recipe, without its secrets
    first: int  # step of the run from which figures come: what is there from later ones is old


class TrackerBackend(Protocol):
    """One tracker, used by one thread. All of it may raise, and may take its time."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Figures after `step` steps of the run, those of its earlier stages counted."""

    def tell(self, step: int, event: Event) -> None: ...

    def close(self) -> None: ...


def _own_id(place: TrackedRun, tracker: str) -> str:
    """A resumed run's is the one that it began with; another run of this name has another."""
    kept = place.directory / f"{tracker}.id"
    if not (place.first and kept.exists()):
        kept.write_text(secrets.token_hex(4))
    return kept.read_text()


class _TensorBoard:
    """Event files in the run's own directory: tensorboard --logdir RUN."""

    def __init__(self, place: TrackedRun) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(place.directory / "tensorboard"), purge_step=place.first)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def tell(self, step: int, event: Event) -> None:
        self._writer.add_text(f"events/{event.kind}", event.message, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """A database of trackio's own (TRACKIO_DIR), or a Space, as its environment says."""

    def __init__(self, place: TrackedRun) -> None:
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            place.project,
            name=f"{place.directory.resolve().name}-{_own_id(place, 'trackio')}",
            config=place.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def tell(self, step: int, event: Event) -> None:
        self._run.alert(event.name, event.message, self._trackio.AlertLevel.INFO, step)

    def close(self) -> None:
        self._run.finish()


class _Wandb:
    """Weights & Biases, as WANDB_MODE, WANDB_API_KEY and `wandb login` say.

    Of events it has the number, by kind: its alerts are mails.
    """

    def __init__(self, place: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=place.project,
            name=place.directory.resolve().name,
            config=place.config,
            dir=str(place.directory),
            id=_own_id(place, "wandb"),
            resume="allow",
            settings=wandb.Settings(silent=True, login_timeout=_DONE_S),
        )
        # As an axis of its own: a resumed run tells some steps again, which wandb's own refuses.
        self._run.define_metric("*", step_metric="step")
        self._events: Counter[str] = Counter()

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars | {"step": step})

    def tell(self, step: int, event: Event) -> None:
        self._events[event.kind] += 1
        self._run.log({f"events/{event.kind}": self._events[event.kind], "step": step})

    def close(self) -> None:
        self._run.finish()


Opening = Callable[
    [int], TrackerBackend
]  # in the tracker's thread; of the first step that will come
BACKENDS: dict[TrackerName, Callable[[TrackedRun], TrackerBackend]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}


class Tracker(Sink):
    """One of the recipe's trackers, at the end of a queue that nobody waits for."""

    def __init__(self, name: str, lengths: Sequence[int], opening: Opening) -> None:
        """`lengths`: steps of each stage."""
        self._name = name
        self._before = [0, *accumulate(lengths)]  # steps of the run before each stage
        self._opening = opening
        # Without a bound of its own: the word that the run has ended always finds room.
        self._waiting: queue.Queue[Callable[[TrackerBackend], None] | None] = queue.Queue()
        self.together: Sequence[Tracker] = (self,)  # of one run: they end by one deadline
        self._deadline: Deadline | None = None
        self._thread: threading.Thread | None = None
        self._now = 0  # step of the run
        self._failure: BaseException | None = None  # not told yet
        self.dropped = 0

    def stage(self, index: int, kind: str, done: int, steps: int) -> None:
        self._now = self._before[index] + done
        if self._thread is None:
            self._thread = threading.Thread(
                # By its name cli.command knows one that is left behind.
                target=self._work,
                args=(self._now,),
                name=f"tracker {self._name}",
                daemon=True,
            )
            self._thread.start()

    def step(self, metrics: StepMetrics) -> None:
        self._now = step = self._before[metrics.stage] + metrics.step
        scalars = metrics.scalars() | {"stage": float(metrics.stage)}
        self._put(lambda backend: backend.log(step, scalars))

    def event(self, event: Event) -> None:
        step = self._now
        if event.kind != "sink_failed":  # a tracker's own trouble is no news for it
            self._put(lambda backend: backend.tell(step, event))

    def done(self) -> None:
        if self._thread is None:
            return
        if self._deadline is None:
            deadline = Deadline(_DONE_S)
            for each in self.together:
                each._end_by(deadline)
        assert self._deadline is not None
        self._thread.join(self._deadline.left)
        if self._thread.is_alive():
            raise TimeoutError(
                f"{self._name} was not done after {_DONE_S:g} s: it lacks up to "
                f"{max(1, self._waiting.qsize())} points more, which are in metrics.jsonl"
            )
        self._complain()

    def _put(self, tell: Callable[[TrackerBackend], None]) -> None:
        """Raises what went wrong before, for sinks.py to note."""
        if self._waiting.qsize() >= _ROOM:
            self.dropped += 1
            raise BufferError(f"{self._name} is slower than the run: points are dropped")
        self._waiting.put(tell)
        self._complain()

    def _end_by(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._waiting.put(None)

    def _complain(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise RuntimeError(f"{self._name}: {described(failure)}")

    def _work(self, first: int) -> None:
        backend: TrackerBackend | None = None
        while (tell := self._waiting.get()) is not None:
            try:
                if backend is None:
                    backend = self._opening(first)
                tell(backend)
            except BaseException as error:  # SystemExit would end the thread, and nobody hear of it
                self._failure = error
        if backend is not None:
            try:
                backend.close()
            except BaseException as error:
                self._failure = error


def check(recipe: Recipe) -> None:
    """Raise ConfigError where the package of one of its `log` is not installed."""
    for name in recipe.log:
        # A folder of this name where Python looks, as wandb leaves one, is found, from nowhere.
        if getattr(find_spec(name), "origin", None) is None:
            raise ConfigError(
                f'log names "{name}", which is not installed; pip install "interlock[{name}]", or '
                "take it out"
            )


def trackers_of(recipe: Recipe, directory: Path) -> list[Tracker]:
    """Those of its `log`; they open in their threads, with the first stage."""
    check(recipe)
    config = redacted(to_tree(recipe))
    lengths = [stage.length for stage in recipe.stage]

    def opening(name: TrackerName) -> Opening:
        return lambda first: BACKENDS[name](TrackedRun(directory, recipe.name, config, first))

    made = [Tracker(name, lengths, opening(name)) for name in recipe.log]
    for each in made:
        each.together = made
    return made
