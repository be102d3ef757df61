"""What every recipe's loop works with: one stage of one run.

It holds the run's parts, knows where a resumed stage goes on, and writes what must be durable.
What is learned, and in which order, stands in the recipe itself.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, Literal, TypeVar

import torch
from msgspec.structs import replace

from interlock.config.schema import Recipe
from interlock.config.stages import StageSettings
from interlock.errors import BudgetSpent, RunError
from interlock.learner import checkpoint
from interlock.learner.learner import Learner
from interlock.learner.losses.kept import KeptSums
from interlock.learner.step_result import StepResult
from interlock.mismatch import Mismatch
from interlock.recipes.budget import Budget
from interlock.recipes.meter import CostMeter
from interlock.recipes.past import stage_seed
from interlock.recipes.sinks import Sink
from interlock.recipes.update_threads import UpdateThreads
from interlock.records.metrics import (
    EventKind,
    PublishMetrics,
    ReplayMetrics,
    RolloutMetrics,
    StepMetrics,
    StepSeconds,
    TaskMetrics,
    TeacherMetrics,
    UpdateMetrics,
    WorkerMetrics,
)
from interlock.records.rl import Score, ScoredGroup
from interlock.rundir import RunDir
from interlock.tasks import TaskSource
from interlock.workers.generators import Beside, Generators, Published

Settings = TypeVar("Settings", bound=StageSettings, covariant=True)
Part = Literal["generate", "wait", "verify", "update", "publish"]  # of StepSeconds


class Clock:
    """Seconds spent in each part of a step."""

    def __init__(self) -> None:
        self._spent: dict[Part, float] = defaultdict(float)
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, part: Part) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[part] += time.perf_counter() - start

    def seconds(self) -> StepSeconds:
        """Those of each part that there was, and all since the clock was made."""
        return StepSeconds(**self._spent, step=time.perf_counter() - self._began)


def update_metrics(updates: Sequence[StepResult]) -> UpdateMetrics:
    """The learner's figures of one step: means, sums or extremes over its updates."""
    gaps = [gap for update in updates if (gap := update.mismatch) is not None]
    loads = [load for update in updates if (load := update.expert_load) is not None]
    vetoed = [update.vetoed for update in updates if update.vetoed is not None]
    return UpdateMetrics(
        loss=_mean(update.loss for update in updates),
        grad_norm=_mean(update.grad_norm for update in updates),
        lr=_mean(update.lr for update in updates),
        entropy=_mean(update.entropy for update in updates),
        kl=_mean(update.kl for update in updates),
        mismatch=sum(gaps, Mismatch()) if gaps else None,
        clipped_share=_mean(update.clipped_share for update in updates),
        masked_share=_mean(update.masked_share for update in updates),
        effective_share=_mean(update.effective_share for update in updates),
        corrected_share=_mean(update.corrected_share for update in updates),
        vetoed=sum(vetoed) if vetoed else None,
        tokens=sum(update.tokens for update in updates),
        bad_steps=sum(update.skipped for update in updates),
        expert_load=_mean(load.busiest for load in loads),
        experts_idle=_mean(load.idle for load in loads),
        mtp_loss=_mean(update.mtp_loss for update in updates),
        replay=_replay([update.kept for update in updates if update.kept is not None]),
    )


def _replay(updates: Sequence[KeptSums]) -> ReplayMetrics:
    if not updates:
        return ReplayMetrics()
    total = sum(updates, KeptSums())
    return ReplayMetrics(
        tokens=total.tokens,
        kept_mass=total.mass / total.tokens,
        far_share=total.far / total.tokens,
        whole_far_share=total.whole_far / total.tokens,
        whole=total.whole,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@dataclass
class Stage(Generic[Settings]):
    """One stage of a run. `done` steps are behind it already when it was resumed."""

    index: int
    settings: Settings
    recipe: Recipe
    run: RunDir
    learner: Learner
    generators: Generators | None  # None when no stage generates anything
    sinks: Sink
    done: int = 0
    # The text of tokens; None where nobody can tell, and then no thinking is told from an answer.
    decode: Callable[[list[int]], str] | None = None
    meter: CostMeter | None = None  # None: nothing is counted
    budget: Budget | None = None

    def __post_init__(self) -> None:
        self._settled = self._moves()
        self.last = self.settings.length  # its last step
        # What a recipe must find again when it is resumed, as JSON has it: in the checkpoints. To
        # be changed when a step's updates are done.
        self.memory: dict[str, Any] = {}
        self._published: list[Published] = []  # since the last step was logged
        self._threads: dict[str, int] = {}  # of each worker, in the step before
        self.threads = UpdateThreads(self.index, self.learner, self.run, self.sinks)

    @property
    def staleness(self) -> int:
        """Versions that a group may be behind when it is used."""
        return self.recipe.staleness(self.settings)

    @property
    def exact(self) -> bool:
        """Nothing is generated ahead of an update, so that a resumed run repeats every bit."""
        return self.staleness == 0

    def left_by(self, name: str) -> Path:
        """The model as an earlier stage of that name left it. Raises RunError when it is gone."""
        directory = self.run.stage_weights(self._place(name), name)
        if not directory.is_dir():
            raise RunError(
                f"there are no weights at {directory}, which a stage asks for; they are kept when "
                "the next stage begins"
            )
        return directory

    def made_by(self, name: str) -> Path:
        """The rows that an earlier stage of that name made."""
        return self.run.data_file(self._place(name), name)

    def _place(self, name: str) -> int:
        return [each.name for each in self.recipe.stage].index(name)

    def steps(self) -> Iterator[int]:
        """The steps still to do, counted from 1; each is to be finished before the next."""
        while self.done < self.last:
            yield self.done + 1

    def end_with(self, step: int) -> None:
        """There is nothing to learn from after `step`: it is the last, before its time."""
        self.last = step

    def seed(self, step: int) -> int:
        """The seed of the sampling noise of one step."""
        return stage_seed(self.recipe.seed, self.settings.name, self.index, step)

    def publish(self) -> None:
        """Hand the learner's weights to the generators, unless they have these already."""
        assert self.generators is not None
        if self.generators.version == self.learner.version and not self.learner.unpublished:
            return
        learner, decoder = self.learner, self.learner.decoder
        number, tensors = learner.publish()
        beside = None
        if decoder.adapter is not None:
            beside = Beside(decoder.adapter, lambda: dict(decoder.published(decoder.dtype)))
        published = self.generators.publish(number, tensors, learner.score, beside)
        if published.kind:
            self._published.append(published)

    def event(self, kind: EventKind, message: str, worker: str | None = None) -> None:
        """Keep an event, and tell of it."""
        self.sinks.event(self.run.event(kind, message, worker))

    def note_rows(self, task: TaskSource) -> None:
        """Keep an event when rows repeat others, and when some do not fit."""
        if task.dropped:
            message = f"{task.dropped} problems are repeated or held out: left out"
            self.event("problems_dropped", message)
        self.note_left_out(task.left_out)

    def note_left_out(self, rows: int) -> None:
        """Keep an event when rows of the data are too long."""
        if rows:
            self.event("rows_left_out", f"{rows} rows are too long: left out")

    def note_not_judged(self, step: int, scored: Sequence[ScoredGroup]) -> None:
        """Keep an event when the verifier failed on some answers, and when it was not there."""
        failed = [v for group in scored for v in group.verdicts if not v.status.judged]
        zeros = [verdict.cause for verdict in failed if verdict.status.counts]
        left_out = [verdict.cause for verdict in failed if not verdict.status.counts]
        if zeros:
            self.event("verifier_error", f"step {step}: {len(zeros)} answers score 0: {zeros[0]}")
        if left_out:
            message = f"step {step}: {len(left_out)} answers are left out: {left_out[0]}"
            self.event("answers_discarded", message)

    def note_bad(self, step: int, updates: Sequence[StepResult]) -> None:
        """Keep an event for each update that was not finite and therefore changed nothing."""
        for update in updates:
            if update.skipped:
                figures = f"loss {update.loss}, gradient norm {update.grad_norm}"
                self.event("bad_step", f"step {step}: {figures}: update skipped")

    def begin(self, held_out: Score | None, held_out_loss: float | None = None) -> None:
        """Log step 0: what the weights can do before the stage."""
        loss, kind = held_out_loss, self.settings.kind
        self._log(StepMetrics(stage=self.index, step=0, kind=kind, held_out_loss=loss), held_out)

    def restored(self, done: int) -> None:
        """The learner was put where it stood after `done` steps."""
        self.done, self._settled = done, self._moves()

    def finish_step(
        self,
        step: int,
        *,
        seconds: StepSeconds,
        held_out: Score | None,
        rollout: RolloutMetrics | None = None,
        update: UpdateMetrics | None = None,
        teachers: Mapping[str, TeacherMetrics] | None = None,
        workers: Mapping[str, WorkerMetrics] | None = None,
        held_out_loss: float | None = None,
    ) -> None:
        """Log one step, and keep a checkpoint when one is due."""
        self._log(
            StepMetrics(
                stage=self.index,
                step=step,
                kind=self.settings.kind,
                weight_version=self.learner.version + self.learner.unpublished,
                rollout=rollout or RolloutMetrics(),
                update=update or UpdateMetrics(),
                seconds=seconds,
                published=_publications(self._published),
                teachers=dict(teachers or {}),
                held_out_loss=held_out_loss,
                workers=dict(workers or {}),
            ),
            held_out,
        )
        self._published.clear()
        self._note_threads(step, workers or {})
        self.restored(step)
        every, last = self.recipe.checkpoint_every, step == self.last
        if last or (every and step % every == 0):
            self._checkpoint()
        self._look_at_budget()

    def _log(self, metrics: StepMetrics, held_out: Score | None) -> None:
        if held_out is not None:
            metrics = replace(
                metrics,
                accuracy=held_out.accuracy,
                held_out_reward=held_out.reward,
                pass_at=dict(held_out.pass_at),
                held_out={name: _of_task(score) for name, score in held_out.tasks.items()},
            )
        if self.meter is not None:
            metrics = self.meter.step(metrics)
        self.sinks.step(self.run.log(metrics))

    def _look_at_budget(self) -> None:
        """Raise BudgetSpent, a checkpoint kept, at a limit that is reached with steps to go."""
        last = self.index == len(self.recipe.stage) - 1 and self.done == self.last
        if self.meter is None or self.budget is None or last:
            return
        if (why := self.budget.look(self.meter.entered())) is not None:
            self.save_what_is_done()
            message = f"{why}; stage {self.index} step {self.done} is kept, raise it and --resume"
            self.event("budget_spent", message)
            raise BudgetSpent(message)

    def _note_threads(self, step: int, workers: Mapping[str, WorkerMetrics]) -> None:
        """Keep an event when a worker took other threads than in the step before."""
        every = torch.get_num_threads()
        for name, each in workers.items():
            if each.threads is None or each.threads == self._threads.get(name, every):
                continue
            self._threads[name] = each.threads
            why = "again" if each.threads == every else "as other processes hold processors"
            message = f"step {step}: {name} drew on {each.threads} of {every} threads {why}"
            self.event("threads_changed", message, worker=name)

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
        self.sinks.phase("saving a checkpoint")
        with self.run.checkpoint(self.index, self.done, self.recipe.keep_checkpoints) as directory:
            where = {"stage": self.index, "step": self.done}
            checkpoint.save(self.learner, directory, where | {"memory": self.memory})

    def _moves(self) -> tuple[int, int]:
        """Changes with every update, applied or skipped."""
        return self.learner.steps, self.learner.bad_steps


def _of_task(score: Score) -> TaskMetrics:
    return TaskMetrics(reward=score.reward, correct=score.accuracy, completions=score.completions)


def _publications(published: Sequence[Published]) -> PublishMetrics:
    if not published:
        return PublishMetrics()
    kinds = [each.kind for each in published]
    size = sum(each.bytes for each in published)
    return PublishMetrics(size, anchors=kinds.count("anchor"), deltas=kinds.count("delta"))
