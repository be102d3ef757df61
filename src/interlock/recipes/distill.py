"""On-policy distillation: the student writes, and its teachers say how they would have gone on.

    publish -> draw problems -> generate -> verify -> whose task -> teachers score -> update -> log
               └──────── rollouts.judged ────────┘                └─ jsd, topk: distil ─┘
                                                                  └─ policy_gradient: learner.step

Every sampled token of a step has the same share of the loss. Rewards are measured and not learned
from. Several teachers: each task of the stage has one. As in GRPO a group may be of an earlier
version of the student, where staleness allows: "policy_gradient" corrects for that, and the others
compare whole distributions, for which it only matters that the texts are much like the student's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec.structs import replace

from interlock.chips import heap
from interlock.config.losses import LossSettings
from interlock.config.stages import Distill
from interlock.learner.distillation import (
    LocalTarget,
    TeacherSums,
    TeacherTarget,
    ToldTarget,
    distil,
    tops,
)
from interlock.learner.losses.divergences import Divergence, shared
from interlock.learner.packing import TrainingGroup
from interlock.learner.step_result import StepResult
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.credit import drawn, kept_sets
from interlock.recipes.evaluate import held_out_score, room
from interlock.recipes.guard import Guard, label
from interlock.recipes.rollouts import Rollouts
from interlock.recipes.stage import Clock, Stage, update_metrics
from interlock.recipes.teachers import FoundTeachers, Teachers, find_teachers, measured
from interlock.records.metrics import TeacherMetrics
from interlock.records.rl import Group, ScoredGroup
from interlock.tasks import TaskSource
from interlock.tasks.mixture import Verifiers, open_tasks


class DistillData(NamedTuple):
    task: TaskSource
    found: FoundTeachers

    @property
    def files(self) -> list[Path]:
        return [*self.task.files, *self.found.files]


class Lesson(NamedTuple):
    """The groups of a step in the order of their teachers, and for each who that is."""

    groups: list[TrainingGroup]
    whose: list[int]

    @property
    def owners(self) -> torch.Tensor:
        """int64 [T]: of every completion token."""
        lengths = [sum(map(len, group.completions)) for group in self.groups]
        return torch.tensor(self.whose).repeat_interleave(torch.tensor(lengths))


def prepare(settings: Distill, tokenizer: Tokenizer, context: int) -> DistillData:
    """Open the task and find the teachers, and try both.

    Raises UserError when the stage could not even take its first step, TrainingError when a
    teacher's endpoint does not answer.
    """
    found = find_teachers(settings.teacher, tokenizer, context, settings.top_k)
    task = open_tasks(settings.task, room(settings.sampling.max_tokens, tokenizer, found.context))
    task.held_out(settings.eval.problems)
    task.check(settings.steps, settings.problems_per_step)
    with Verifiers(settings.task):
        return DistillData(task, found)


def run(stage: Stage[Distill], data: DistillData) -> None:
    """Run the stage from where it stands to its last step."""
    settings, task = stage.settings, data.task
    held_out = task.held_out(settings.eval.problems)
    how = settings.teacher, data.found, settings.sampling.temperature
    with Verifiers(settings.task) as verifier, Teachers(stage, *how) as teachers:
        if stage.done == 0:
            stage.note_rows(task)
            stage.begin(held_out_score(stage, 0, held_out, verifier))
        rollouts, guard = Rollouts(stage, task), Guard(stage)
        for step in stage.steps():
            clock = Clock()
            with clock("publish"):
                stage.publish()
            recorded = stage.run.ledger.read(stage.index, step)
            scored = recorded or rollouts.judged(step, verifier, clock)
            lesson = lesson_of(scored, teachers, rollouts.staleness)
            with clock("update"), heap.apart(), stage.threads(step):
                update, told = _update(stage, step, lesson, teachers)
            stage.note_bad(step, [update])
            stage.finish_step(
                step,
                rollout=rollouts.metrics(step, scored, 0),
                update=update_metrics([update]),
                teachers=told,
                seconds=clock.seconds(),
                workers=guard.judge(step, [update], fresh=not recorded),
                held_out=held_out_score(stage, step, held_out, verifier),
            )


def lesson_of(
    scored: Sequence[ScoredGroup],
    teachers: Teachers,
    staleness: Callable[[Group], int],
) -> Lesson:
    """The groups of a step, every sampled token weighted by its share, by the teacher of each."""
    groups = [each.group for each in scored]
    share = 1 / sum(sum(answer.mask) for group in groups for answer in group.completions)
    taught = [
        (
            teachers.of(group.problem.task),
            TrainingGroup(
                prompt=group.prompt_tokens,
                completions=[answer.tokens for answer in group.completions],
                # What was given, such as a tool's result, is read and not learned.
                weights=[[share * own for own in answer.mask] for answer in group.completions],
                sampler_logprobs=[answer.logprobs for answer in group.completions],
                label=label(group.worker, staleness(group)),
                sampled=drawn(group),
                kept=kept_sets(group),
            ),
        )
        for group in groups
    ]
    taught.sort(key=lambda each: each[0])
    return Lesson([group for _, group in taught], [place for place, _ in taught])


def _update(
    stage: Stage[Distill], step: int, lesson: Lesson, teachers: Teachers
) -> tuple[StepResult, dict[str, TeacherMetrics]]:
    """One optimizer step, and what each teacher said, by name."""
    settings, count = stage.settings, len(teachers.names)
    stage.sinks.phase("updating")
    how = Divergence(settings.beta, settings.sampling.temperature, settings.top_k)
    cost = {place: TeacherMetrics() for place in set(lesson.whose)}
    if settings.loss == "policy_gradient":
        result, found, cost = _policy_gradient(stage, step, lesson, teachers)
    else:
        targets: list[TeacherTarget]
        if settings.loss == "jsd":
            targets = [LocalTarget(each, teachers.vocab, how) for each in teachers.decoders]
        else:
            said, cost = teachers.tops(step, lesson.groups, lesson.whose, settings.top_k)
            targets = [ToldTarget(said, how)] * count
        chunk = stage.recipe.learner.logits_chunk
        rest = lesson.owners, targets, how, chunk, teachers.vocab
        result, found = distil(stage.learner, lesson.groups, *rest)
    return result, {
        teachers.names[place]: measured(found[place], spent) for place, spent in cost.items()
    }


def _policy_gradient(
    stage: Stage[Distill], step: int, lesson: Lesson, teachers: Teachers
) -> tuple[StepResult, list[TeacherSums], dict[int, TeacherMetrics]]:
    """A step whose advantage of a sampled token is log nu - log pi, which is a constant: in
    expectation it is one down the reverse KL (Thinking Machines, "On-Policy Distillation", 2025).
    """
    learner, settings, groups = stage.learner, stage.settings, lesson.groups
    temperature, k = settings.sampling.temperature, settings.top_k
    said, cost = teachers.tops(step, groups, lesson.whose, k)
    chunk = stage.recipe.learner.logits_chunk
    ours = tops(learner.decoder, learner, groups, temperature, chunk, k, teachers.vocab)
    share = torch.tensor([w for group in groups for text in group.weights for w in text])
    apart = ours.own - said.own
    columns = torch.stack([apart, apart, *shared(ours, said)]).double()
    sums = []
    for place in range(len(teachers.names)):
        mine = (lesson.owners == place) & (share != 0)
        sums.append(TeacherSums(int(mine.sum()), *columns[:, mine].sum(-1).tolist()))
    weights, old = _split(-apart * share, groups), _split(ours.own, groups)
    weighted = [
        replace(group, weights=[text.tolist() for text in own])
        for group, own in zip(groups, weights, strict=True)
    ]
    loss = LossSettings(correction=settings.correction)
    # Over kept sets the ratio to the sampler is not of what was just scored.
    before = None if settings.replays else old
    return learner.step(weighted, loss, temperature, before), sums, cost


def _split(column: torch.Tensor, groups: Sequence[TrainingGroup]) -> list[list[torch.Tensor]]:
    """[T] by group and completion."""
    lengths = [[len(text) for text in group.completions] for group in groups]
    parts = iter(column.split([length for group in lengths for length in group]))
    return [[next(parts) for _ in group] for group in lengths]
