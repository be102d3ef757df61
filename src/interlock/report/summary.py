"""What a run amounts to: accuracy before and after, duration, counts, sample answers.

Reads a run directory; draws nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from interlock.records.metrics import StepMetrics
from interlock.records.passes import Share, accuracy, solved, trials, wilson
from interlock.records.rl import Completion, FinishReason, Score, ScoredGroup, Verdict, of_tasks
from interlock.rundir import RunView, Session

Metrics = Sequence[StepMetrics]


class Evaluation(NamedTuple):
    """Answers to held-out problems after `step` updates of a stage."""

    stage: int
    step: int
    accuracy: float  # share of right answers
    problems: int | None  # None when the answers are not in the ledger
    reward: float | None = None  # mean; None when neither logged nor in the ledger
    trials: float | None = None  # what the answers tell is worth so many; None: one per problem
    samples: int = 1  # answers to a problem; 1: a greedy one
    pass_at: Mapping[int, float] = MappingProxyType({})  # by k, as logged
    tasks: Mapping[str, Share] = MappingProxyType({})  # the accuracy on each, where several

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Wilson interval of `accuracy`; None when the answers are not known."""
        if not self.problems:
            return None
        return wilson(self.accuracy, self.problems if self.trials is None else self.trials)


class BeforeAfter(NamedTuple):
    """The first and the last evaluation on one and the same set of problems."""

    before: Evaluation
    after: Evaluation | None  # None when the run was evaluated once


class ShownAnswer(NamedTuple):
    text: str
    reward: float
    right: bool
    cause: str | None  # why the verifier could not judge it
    cut: bool  # ended by max_tokens


class Comparison(NamedTuple):
    question: str
    reference: str
    before: ShownAnswer
    after: ShownAnswer


class Sample(NamedTuple):
    """Completions of one problem, drawn while training."""

    stage: int
    step: int
    question: str
    reference: str
    answers: list[ShownAnswer]


def total(metrics: Metrics, figure: Callable[[StepMetrics], float | None]) -> float | None:
    """The sum of a figure over all steps that have it; None when none does."""
    values = [value for line in metrics if (value := figure(line)) is not None]
    return math.fsum(values) if values else None


def evaluations(run: RunView, metrics: Metrics) -> list[Evaluation]:
    """Every evaluation, in order: of the recorded answers; what was logged where these are gone."""
    logged = {(line.stage, line.step): line for line in metrics if line.accuracy is not None}
    recorded = set(run.ledger.evaluation_steps())
    found = []
    for place in sorted(logged.keys() | recorded):
        if place in recorded:
            passed = logged[place].pass_at if place in logged else {}
            scored = run.ledger.read_evaluation(*place)
            if any(any(group.counted) for group in scored):  # else nothing is known of it
                found.append(_evaluation(place, scored, passed))
        elif (accuracy := logged[place].accuracy) is not None:
            found.append(Evaluation(*place, accuracy, None, logged[place].held_out_reward))
    return found


def _evaluation(
    place: tuple[int, int], scored: Sequence[ScoredGroup], passed: Mapping[int, float]
) -> Evaluation:
    worth, (shares, answers) = Score.of(scored), solved(scored)
    tasks = of_tasks(scored) if len(worth.tasks) > 1 else {}
    return Evaluation(
        *place,
        worth.accuracy,
        len(shares),
        worth.reward,
        trials(shares, answers),
        max(len(group.group.completions) for group in scored),
        passed,
        {name: accuracy(own) for name, own in tasks.items()},
    )


def before_after(run: RunView, found: Sequence[Evaluation]) -> BeforeAfter | None:
    """Compare the last evaluation with the first on the same problems, asked as often; None
    without any.
    """
    if not found:
        return None
    last = found[-1]
    same = _problem_ids(run, last)
    first = next(evaluation for evaluation in found if _problem_ids(run, evaluation) == same)
    return BeforeAfter(first, last if last is not first else None)


def comparisons(run: RunView, pair: BeforeAfter | None, count: int) -> list[Comparison]:
    """The answers to the first `count` held-out problems, before and after: not picked."""
    if pair is None or pair.after is None:
        return []
    before = run.ledger.read_evaluation(pair.before.stage, pair.before.step)
    after = run.ledger.read_evaluation(pair.after.stage, pair.after.step)
    return [
        Comparison(
            question_of(old), old.group.problem.answer, answers_of(old)[0], answers_of(new)[0]
        )
        for old, new in zip(before[:count], after[:count], strict=True)
    ]


def samples(run: RunView, groups: int, completions: int) -> list[Sample]:
    """The first completions of the first groups of the first, middle and last recorded step."""
    steps = run.ledger.steps()
    if not steps:
        return []
    chosen = sorted({0, len(steps) // 2, len(steps) - 1})
    return [
        Sample(
            *steps[index],
            question_of(scored),
            scored.group.problem.answer,
            answers_of(scored)[:completions],
        )
        for index in chosen
        for scored in run.ledger.read(*steps[index])[:groups]
    ]


def void(run: RunView) -> list[str]:
    """Why what a finished run did counts for nothing, one line for each stage of which that holds.

    Its verifier failed on every answer, or its weights are those that it began with.
    """
    found, version = [], 0
    stages: dict[int, list[StepMetrics]] = {}
    for line in run.metrics():
        stages.setdefault(line.stage, []).append(line)
    for stage, lines in stages.items():
        began, version = version, max(line.weight_version or 0 for line in lines)
        asked = total(lines, lambda m: m.rollout.completions)
        left_out = total(lines, lambda m: m.rollout.discarded) or 0
        failed = total(lines, lambda m: m.rollout.verifier_errors)
        held_out = run.ledger.read_evaluation(stage, lines[-1].step)
        cause = not_judged(held_out) or (
            asked and failed == asked - left_out and _last_failure(run)
        )
        if cause:
            found.append(f"stage {stage}: the verifier failed on every answer: {cause}")
        elif version == began and lines[-1].step:
            found.append(f"stage {stage} learned nothing: {_why_nothing(lines)}")
    return found


def not_judged(scored: Sequence[ScoredGroup]) -> str | None:
    """Why none of these answers was judged; None when one was, or there are none."""
    return why_failed([verdict for group in scored for verdict in group.verdicts])


def why_failed(verdicts: Sequence[Verdict]) -> str | None:
    """The first cause, when the verifier failed on all of these answers, and there are some."""
    if not verdicts or any(verdict.status.judged for verdict in verdicts):
        return None
    return verdicts[0].cause or "it gave no reason"


def _last_failure(run: RunView) -> str:
    failures = [event.message for event in run.events() if event.kind == "verifier_error"]
    return failures[-1] if failures else "see the events"


def _why_nothing(lines: Metrics) -> str:
    groups = total(lines, lambda m: m.rollout.groups)
    if groups and groups == total(lines, lambda m: m.rollout.groups_skipped):
        return f"in each of its {groups:.0f} groups all rewards are equal"
    return "no update was finite"


def active_seconds(sessions: Sequence[Session], times: Sequence[float]) -> float:
    """Time spent running, pauses between sessions left out.

    A killed session ends with the last of `times` (when lines were logged) that falls into it.
    """
    starts = [session.started for session in sessions]
    spent = 0.0
    for session, following in zip(sessions, [*starts[1:], math.inf], strict=True):
        inside = [time for time in times if session.started <= time < following]
        ended = session.ended or max(inside, default=session.started)
        spent += max(0.0, ended - session.started)
    return spent


def _problem_ids(run: RunView, evaluation: Evaluation) -> list[str]:
    scored = run.ledger.read_evaluation(evaluation.stage, evaluation.step)
    return [f"{len(group.group.completions)} {group.group.problem.id}" for group in scored]


def question_of(scored: ScoredGroup) -> str:
    turns = [turn for turn in scored.group.problem.messages if turn.get("role") == "user"]
    return turns[-1].get("content", "") if turns else ""


def answers_of(scored: ScoredGroup) -> list[ShownAnswer]:
    return [
        answer(completion, verdict)
        for completion, verdict in zip(scored.group.completions, scored.verdicts, strict=True)
    ]


def answer(completion: Completion, verdict: Verdict) -> ShownAnswer:
    cut = completion.finish is FinishReason.LENGTH
    return ShownAnswer(completion.text, verdict.reward, verdict.right, verdict.cause, cut)
