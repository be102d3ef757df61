"""What every recipe's loop works with: one stage of one run.

It holds the run's parts, knows where a resumed stage goes on, and writes what must be durable.
What is learned, and in which order, stands in the recipe itself.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Generic, TypeVar

from interlock.config.schema import Recipe, StageSettings
from interlock.learner import checkpoint
from interlock.learner.learner import Learner, StepResult
from interlock.recipes.watch import Watch
from interlock.rundir import RunDir
from interlock.workers.generators import Generators, Published

Settings = TypeVar("Settings", bound=StageSettings, covariant=True)
_COMBINE: dict[str, Callable[[Sequence[float]], float]] = {"vetoed": sum, "mismatch_max": max}


class Clock:
    """Seconds spent in each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """seconds_<part> for each part, and seconds_step since the clock was made."""
        parts = {f"seconds_{part}": seconds for part, seconds in self.seconds.items()}
        return parts | {"seconds_step": time.perf_counter() - self._began}


def step_metrics(updates: Sequence[StepResult]) -> dict[str, float]:
    """The learner's figures of one step: means, sums or extremes over its updates."""
    found: dict[str, float] = {}
    for name in StepResult.__struct_fields__:
        values = [v for update in updates if (v := getattr(update, name)) is not None]
        if not values or name in ("tokens", "skipped", "mismatch"):
            continue
        found[name] = _COMBINE.get(name, fmean)(values)
    return found


@dataclass
class Stage(Generic[Settings]):
    """One stage of a run. `done` steps are behind it already when it was resumed."""

    index: int
    settings: Settings
    recipe: Recipe
    run: RunDir
    learner: Learner
    generators: Generators | None  # None when no stage generates anything
    watch: Watch
    done: int = 0

    def __post_init__(self) -> None:
        self._settled = self._moves()
        self._published: list[Published] = []  # since the last step was logged

    @property
    def staleness(self) -> int:
        """Versions that a group may be behind when it is used."""
        return self.recipe.staleness(self.settings)

    def steps(self) -> range:
        """The steps still to do, counted from 1."""
        return range(self.done + 1, self.settings.steps + 1)

    def seed(self, step: int) -> int:
        """The seed of the sampling noise of one step; evaluations all share step 0's."""
        text = f"{self.recipe.seed}/{self.index}/{step}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

    def publish(self) -> None:
        """Hand the learner's weights to the generators, unless they have these already."""
        assert self.generators is not None
        if self.generators.version == self.learner.version and not self.learner.unpublished:
            return
        number, tensors = self.learner.publish()
        published = self.generators.publish(number, tensors, self.learner.score)
        if published.kind:
            self._published.append(published)

    def event(self, kind: str, message: str, **facts: Any) -> None:
        """Keep an event, and show it."""
        self.run.event(kind, message, **facts)
        self.watch.note(message)

    def note_dropped(self, count: int) -> None:
        """Keep an event when problems were left out because others are the same."""
        if count:
            self.event("problems_dropped", f"{count} problems are repeated or held out: left out")

    def note_bad(self, step: int, updates: Sequence[StepResult]) -> None:
        """Keep an event for each update that was not finite and therefore changed nothing."""
        for update in updates:
            if update.skipped:
                figures = f"loss {update.loss}, gradient norm {update.grad_norm}"
                self.event("bad_step", f"step {step}: {figures}: update skipped")

    def begin(self, accuracy: float | None) -> None:
        """Log step 0: what the weights can do before the stage."""
        self.run.log(
            {"stage": self.index, "step": 0, "kind": self.settings.kind, "accuracy": accuracy}
        )

    def restored(self, done: int) -> None:
        """The learner was put where it stood after `done` steps."""
        self.done, self._settled = done, self._moves()

    def finish_step(self, step: int, metrics: dict[str, Any]) -> None:
        """Log one step, and keep a checkpoint when one is due."""
        metrics = {"stage": self.index, "step": step} | metrics
        if self._published:
            kinds = [published.kind for published in self._published]
            metrics["published_bytes"] = sum(published.bytes for published in self._published)
            metrics["published"] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        self._published.clear()
        self.run.log(metrics)
        self.watch.step(metrics)
        self.restored(step)
        every, last = self.recipe.checkpoint_every, step == self.settings.steps
        if last or (every and step % every == 0):
            self._checkpoint()

    def save_what_is_done(self) -> bool:
        """Keep a checkpoint of the last finished step when a run must stop; whether there is one.

        False in the middle of an update: the checkpoint before, and the ledger, go on from there.
        """
        newest = self.run.latest_checkpoint()
        if newest is not None and (newest.stage, newest.step) == (self.index, self.done):
            return True
        if self.done == 0 or self._settled != self._moves():
            return False
        self._checkpoint()
        return True

    def _checkpoint(self) -> None:
        self.watch.phase("saving a checkpoint")
        with self.run.checkpoint(self.index, self.done, self.recipe.keep_checkpoints) as directory:
            checkpoint.save(self.learner, directory, {"stage": self.index, "step": self.done})

    def _moves(self) -> tuple[int, int]:
        """Changes with every update, applied or skipped."""
        return self.learner.steps, self.learner.bad_steps
