"""The groups of a stage: ordered ahead of their use, each used once, the oldest problem first.

    problem stream: sequence 0, 1, 2, …  ──order──> generators ──arrive (ledger)──> buffer
                          ^                                                           │
                          └── too old, or of a worker in quarantine: once more <──────┤
    take(step) <── the oldest usable groups ──────────────────────────────────────────┘

With staleness 0 no more than a step's problems are ever ordered, so generation waits for every
update. With a cap of n, generators work up to n steps ahead.

Where others are to be made in place of groups that teach nothing (dynamic sampling: DAPO, arXiv
2503.14476, section 3.2), they are the next of the same stream, and the step keeps them all: from
its ledger a resumed run learns the same. What was not yet recorded is among the arrivals.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, groupby
from statistics import fmean, mean
from typing import Literal

from msgspec.structs import replace

from interlock.config.rewards import rewards_at
from interlock.config.stages import Sampled
from interlock.errors import TrainingError
from interlock.recipes.earnings import earnings
from interlock.recipes.evaluate import grade, score
from interlock.recipes.lengths import mean_lengths
from interlock.recipes.replays import replay_of
from interlock.recipes.stage import Clock, Stage
from interlock.recipes.stream import open_stream
from interlock.records.metrics import RolloutMetrics, TaskMetrics
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Score,
    ScoredGroup,
    of_tasks,
)
from interlock.tasks import TaskSource
from interlock.tasks.mixture import Verifiers
from interlock.workers.generators import Purpose, Work

_LOOK_S = 0.5  # between two looks at the workers while waiting


class Rollouts:
    """Supplies every step of one stage with groups. `stale` and `set_aside` count for the step.

    A problem is known by its sequence number, its place in the stage's stream of problems.
    `extra`: groups of a step, at most, that may be made in place of others.
    """

    def __init__(self, stage: Stage[Sampled], task: TaskSource, extra: int = 0) -> None:
        assert stage.generators is not None
        self._stage, self._generators = stage, stage.generators
        self._ledger, self._settings = stage.run.ledger, stage.settings
        self._cap = stage.staleness
        self._extra = extra
        self._budget = stage.settings.sampling.thinking_budget is not None
        self._step = 0
        self._stream = open_stream(stage, task)
        used = self._ledger.used(stage.index)
        self._spent = used | set(self._ledger.set_asides(stage.index))
        steps = [step for at, step in self._ledger.steps() if at == stage.index]
        self._recorded = max(steps, default=0)
        # Groups that were used beyond a step's problems: so far is the stream ahead of the steps.
        self._ahead = max(0, len(used) - len(steps) * self._settings.problems_per_step)
        self._generators.keep, self._generators.forget = self._keep, self._forget
        self._buffer = dict(self._ledger.arrivals(stage.index))  # finished, not used
        self._ordered: set[int] = set()  # not finished
        self.stale = 0
        self.set_aside = 0
        self.retried: int | None = None  # None: the step was judged in an earlier session
        self.spent: dict[str, float] = {}
        self.learned(stage.done)

    @property
    def activity(self) -> Literal["wait", "generate"]:
        """What a step does in `take`: generation goes on without it unless staleness is 0."""
        return "wait" if self._cap else "generate"

    def take(self, step: int) -> list[tuple[int, Group]]:
        """The groups of one step with their sequence numbers, to be recorded before use.

        Fewer than `problems_per_step` only when the last problems of the stage were set aside.
        Raises TrainingError when no generator or no problem is left.
        """
        self._step, self.stale, self.set_aside = step, 0, 0
        taken = self._take(self._settings.problems_per_step)
        if not taken:
            raise TrainingError(f"step {step}: every problem left was set aside; see the events")
        return taken

    def _take(self, wanted: int) -> list[tuple[int, Group]]:
        """As many groups of this step, or as are left."""
        self._stage.sinks.phase("generating", wanted)
        self._drop()
        if self._ordered:  # what came meanwhile may be older than what is at hand
            self._receive(0.0)
        while True:
            self._drop()
            self._order(wanted)
            if len(self._buffer) >= wanted or not self._ordered:
                break
            self._receive(_LOOK_S)
        taken = sorted(self._buffer)[:wanted]
        self._spent.update(taken)
        return [(sequence, self._buffer.pop(sequence)) for sequence in taken]

    def judged(
        self,
        step: int,
        verifier: Verifiers,
        clock: Clock,
        teaches: Callable[[ScoredGroup], bool] = lambda _: True,
    ) -> list[ScoredGroup]:
        """The groups of one step: taken, judged by the verifier, and durable.

        Those that do not teach are among them; as many more are made, up to `extra`.
        """
        before, wanted = verifier.retried, self._settings.problems_per_step
        limit = self._settings.sampling.max_tokens
        sequences: list[int] = []
        scored: list[ScoredGroup] = []
        with clock(self.activity):
            taken = self.take(step)
        while taken:
            sequences += [sequence for sequence, _ in taken]
            judge = grade if scored else score  # a step that was judged needs no more of them
            with clock("verify"):
                scored += judge([group for _, group in taken], verifier, limit, step)
            lacking = wanted - sum(map(teaches, scored)) if self._extra else 0
            more = min(lacking, wanted + self._extra - len(scored))
            with clock(self.activity):
                taken = self._take(more) if more > 0 else []
        self._ahead += max(0, len(scored) - wanted)
        self.retried, self.spent = verifier.retried - before, verifier.spent()
        if unasked := self.spent.get("unasked"):
            message = f"step {step}: a judge that is down was not asked for {unasked:.0f} answers"
            self._stage.event("judge_down", message)
        self._stage.note_not_judged(step, scored)
        self._ledger.record(self._stage.index, step, scored, sequences)
        self._recorded = step
        return scored

    def learned(self, step: int) -> None:
        """What the groups of steps up to this one showed counts for what is drawn from now on.
        Where nothing is left to draw and all that was drawn is used, the stage ends with it.
        """
        self._stream.learn(step)
        if self._recorded > step or step >= self._settings.sampled_steps or self._under_way:
            return
        if next(self._missing(1), None) is None and self._stream.closed:
            self._stage.end_with(step)

    def staleness(self, group: Group) -> int:
        """How many versions the learner is ahead of the oldest that sampled any of the group."""
        return self._stage.learner.version - group.weight_version

    def metrics(self, step: int, used: Sequence[ScoredGroup], skipped: int) -> RolloutMetrics:
        """What is logged of the step that used these groups, before its weights are published.

        `skipped` of them taught nothing.
        """
        answers = [answer for scored in used for answer in scored.group.completions]
        verdicts = [verdict for scored in used for verdict in scored.verdicts]
        worth = Score.of(used)
        lengths = [sum(answer.mask) for answer in answers]
        behind = [self.staleness(scored.group) for scored in used]
        decode = self._stage.decode
        paid = earnings(
            used,
            [replace(task, reward=rewards_at(task.reward, step)) for task in self._settings.task],
        )
        apart = mean_lengths([scored.group for scored in used], decode) if decode else None
        return RolloutMetrics(
            reward=worth.reward,
            correct=worth.accuracy,
            parts=_means(verdict.parts for verdict in verdicts),
            **paid._asdict(),
            length=fmean(lengths),
            thinking_length=apart and apart.thinking,
            answer_length=apart and apart.answer,
            thinking_open=apart and apart.open,
            truncated=fmean(answer.finish is FinishReason.LENGTH for answer in answers),
            tokens=sum(lengths),
            thinking_cut=_cut(answers) if self._budget else None,
            groups=len(used),
            completions=len(answers),
            groups_skipped=skipped,
            groups_extra=max(0, len(used) - self._settings.problems_per_step)
            if self._extra
            else None,
            groups_stale=self.stale,
            groups_set_aside=self.set_aside,
            staleness_mean=fmean(behind),
            staleness_max=max(behind),
            verifier_errors=sum(each.status.counts and not each.status.judged for each in verdicts),
            discarded=sum(not each.status.counts for each in verdicts),
            retried=self.retried,
            judge=self.spent,
            tasks=_each_task(used, self._budget),
            pools=self._stream.standing(),
        )

    @property
    def _under_way(self) -> int:
        return len(self._buffer) + len(self._ordered)

    def _keep(self, groups: Sequence[tuple[int, Group]]) -> None:
        self._ledger.arrive(self._stage.index, groups)

    def _forget(self, worker: str) -> Sequence[int]:
        return self._ledger.withdraw(self._stage.index, worker)

    def _drop(self) -> None:
        """Forget the groups that may not be used; their problems are then ordered again."""
        out, withdrawn = self._generators.quarantined(), self._generators.withdrawn()
        distrusted = {
            sequence
            for sequence, group in self._buffer.items()
            if group.worker in out or sequence in withdrawn
        }
        unusable = {
            sequence: group
            for sequence, group in self._buffer.items()
            if sequence in distrusted or not 0 <= self.staleness(group) <= self._cap
        }
        stale = len(unusable.keys() - distrusted)
        if stale:
            self.stale += stale
            message = (
                f"step {self._step}: {stale} groups are not of the last {self._cap + 1} versions"
            )
            self._stage.event("groups_stale", f"{message}: made again")
        for sequence, group in unusable.items():
            self._generators.dropped(group.worker)
            del self._buffer[sequence]
        if unusable:
            self._ledger.discard(self._stage.index, sorted(unusable))

    def _order(self, wanted: int) -> None:
        """Order the oldest problems that are not under way, as far ahead of the `wanted` ones as
        staleness allows, and no further than the stage's last step: what came after that would be
        handed to the next stage, as if it were of its problems.

        A unit is the same problems of the same step whenever it is ordered, so that a resumed run
        repeats it (unless a problem was set aside meanwhile).
        """
        settings, run = self._settings, self._stage.recipe
        later = min(self._cap, settings.sampled_steps - self._step)
        ahead = wanted + later * settings.problems_per_step
        room = ahead - self._under_way
        if room <= 0:
            return
        unit = run.fleet.unit
        if not unit:  # what is not exact comes back group by group: nothing waits for a larger unit
            shared = -(-settings.problems_per_step // self._generators.size)
            unit = shared if self._stage.exact else 1

        def place(sequence: int) -> tuple[int, int]:
            step, index = divmod(sequence, settings.problems_per_step)
            return step, index // unit

        work = []
        for (step, _), members in groupby(self._missing(room), key=place):
            keys = tuple(members)
            order = keys[0] - self._ahead - self._stream.voids
            work.append(
                Work(
                    Purpose.TRAIN,
                    keys,
                    tuple(filter(None, map(self._stream.problem, keys))),
                    settings.completions,
                    settings.sampling,
                    self._stage.seed(step + 1),
                    self._stage.exact,
                    self._since(1 + max(0, order) // settings.problems_per_step),
                    replay_of(settings, self._stage.learner.decoder.arch),
                )
            )
            self._ordered.update(keys)
        self._generators.order(work)

    def _since(self, step: int) -> int:
        """The oldest version that may sample what is used in `step`, if each step until then makes
        a new one.
        """
        version = self._stage.learner.version
        return max(0, version - max(0, self._cap - (step - self._step)))

    def _missing(self, limit: int) -> Iterator[int]:
        """The first sequence numbers that have a problem and are neither used, finished nor under
        way.
        """
        total = self._settings.sampled_steps * (self._settings.problems_per_step + self._extra)
        total += min(total, len(self._ledger.set_asides(self._stage.index)))  # which are replaced
        busy = self._spent | self._buffer.keys() | self._ordered
        found = 0
        for sequence in count():
            if found == limit or sequence >= total + self._stream.voids:
                return
            if sequence in busy:
                continue
            if self._stream.problem(sequence) is not None:
                found += 1
                yield sequence
            elif self._stream.closed:
                return

    def _receive(self, timeout_s: float) -> None:
        for sequence, group, reason in self._generators.collect(Purpose.TRAIN, timeout_s):
            self._ordered.discard(sequence)
            if group is None:
                self._ledger.set_aside(self._stage.index, sequence, reason)
                self._spent.add(sequence)
                self.set_aside += 1
            else:
                self._buffer[sequence] = group
        self._stage.sinks.workers(self._generators.facts())


def _cut(answers: Iterable[Completion]) -> int:
    """How many have had their thinking ended by its budget."""
    return sum(not all(answer.mask) for answer in answers)


def _each_task(used: Sequence[ScoredGroup], budget: bool) -> dict[str, TaskMetrics]:
    """Of each task, where there are several; `budget`: thinking has one."""
    tasks = of_tasks(used)
    if len(tasks) < 2:
        return {}
    found = {}
    for name, own in tasks.items():
        answers = [answer for each in own for answer in each.group.completions]
        lengths = [sum(answer.mask) for answer in answers]
        worth = Score.of(own)
        found[name] = TaskMetrics(
            reward=worth.reward,
            correct=worth.accuracy,
            length=fmean(lengths),
            thinking_cut=_cut(answers) if budget else None,
            groups=len(own),
            completions=len(lengths),
        )
    return found


def _means(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each part, over those that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for parts in found:
        for name, value in parts.items():
            values[name].append(value)
    return {name: mean(values[name]) for name in sorted(values)}
