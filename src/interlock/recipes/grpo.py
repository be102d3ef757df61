"""Group relative policy optimization: learning from rewards that a program can verify.

    publish -> draw problems -> generate -> verify -> advantages -> pack -> learner.step -> log
               └──────── rollouts.judged ────────┘    └─ minibatches ──┘
                    ^ once more, for groups that teach nothing

The advantage of a completion is its reward against the other completions of the same problem
(credit.py); there is no value model. Groups whose rewards are all equal teach nothing: they are
left out, and counted, and with `extra_groups` others are made in their place.
"""

from interlock.chips import heap
from interlock.config.stages import Grpo
from interlock.learner.learner import Learner
from interlock.learner.step_result import StepResult
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.alarms import Alarms
from interlock.recipes.credit import Credit
from interlock.recipes.diagnosis import LearningWatch
from interlock.recipes.evaluate import held_out_score, room
from interlock.recipes.guard import Guard
from interlock.recipes.off_policy import OffPolicy
from interlock.recipes.past import Batches, PastStage, PastUpdate, PastUpdates
from interlock.recipes.rollouts import Rollouts
from interlock.recipes.stage import Clock, Stage, update_metrics
from interlock.records.rl import Group
from interlock.tasks import TaskSource
from interlock.tasks.mixture import Verifiers, open_tasks


def prepare(settings: Grpo, tokenizer: Tokenizer, context: int) -> TaskSource:
    """Open the tasks, and try each: its problems, its verifier, and whether prompts fit the model.

    Raises UserError when the stage could not even take its first step.
    """
    task = open_tasks(settings.task, room(settings.sampling.max_tokens, tokenizer, context))
    task.held_out(settings.eval.problems)
    reach = settings.steps * (settings.problems_per_step + settings.extra_groups)
    task.check(-(-reach // settings.problems_per_step), settings.problems_per_step)
    with Verifiers(settings.task):
        return task


def run(stage: Stage[Grpo], task: TaskSource) -> None:
    """Run the stage from where it stands to its last step."""
    settings = stage.settings
    held_out = task.held_out(settings.eval.problems)
    with Verifiers(settings.task) as verifier:
        if stage.done == 0:
            stage.note_rows(task)
            stage.begin(held_out_score(stage, 0, held_out, verifier))
        rollouts, guard = Rollouts(stage, task, settings.extra_groups), Guard(stage)
        credit = Credit(settings.loss, settings.sampling.max_tokens)
        alarms, off_policy = Alarms(stage), OffPolicy(settings.loss, stage.memory)
        diagnosis = LearningWatch(stage, settings.loss)
        for step in stage.steps():
            clock = Clock()
            with clock("publish"):
                stage.publish()
            recorded = stage.run.ledger.read(stage.index, step)
            scored = recorded or rollouts.judged(step, verifier, clock, credit.teaches)
            rollouts.learned(step)
            batches = credit.minibatches(scored, settings.updates_per_step, rollouts.staleness)
            if batches:
                stage.sinks.phase("updating")
            with clock("update"), heap.apart(), stage.threads(step):
                updates = _update(stage.learner, settings, batches, off_policy)
            update = off_policy.finish(update_metrics(updates))
            _renew_reference(stage, step)
            stage.note_bad(step, updates)
            rollout = rollouts.metrics(step, scored, len(scored) - sum(map(len, batches)))
            diagnosis.look(step, rollout, update)
            workers, seconds = guard.judge(step, updates, fresh=not recorded), clock.seconds()
            measured = held_out_score(stage, step, held_out, verifier)
            alarms.look(step, update, rollout, measured)
            stage.finish_step(
                step,
                rollout=rollout,
                update=update,
                seconds=seconds,
                workers=workers,
                held_out=measured,
            )


def _renew_reference(stage: Stage[Grpo], step: int) -> None:
    """Let the KL be against the weights of now, where it is time: R1-Zero (Nature 645, 2025)."""
    every = stage.settings.loss.reference_every
    if every and step % every == 0:
        stage.learner.renew_reference()
        stage.event("reference_replaced", f"step {step}: its weights are the KL's reference now")


def past(stage: PastStage[Grpo]) -> PastUpdates:
    """The updates of the steps that are in the ledger."""
    settings, off_policy = stage.settings, OffPolicy(stage.settings.loss, stage.remembered())
    credit = Credit(settings.loss, settings.sampling.max_tokens)

    def of(learner: Learner, step: int) -> PastUpdate:
        def late(group: Group) -> int:
            return learner.version - group.weight_version

        # As if they had been published.
        learner.version, learner.unpublished = learner.version + learner.unpublished, False
        scored = stage.run.ledger.read(stage.index, step)
        batches = credit.minibatches(scored, settings.updates_per_step, late)

        def make(batches: Batches) -> list[StepResult]:
            results = _update(learner, settings, batches, off_policy)
            off_policy.finish(update_metrics(results))
            every = settings.loss.reference_every
            if every and step % every == 0:
                learner.renew_reference()
            return results

        return PastUpdate(batches, make)

    def teaches(step: int) -> bool:
        return any(map(credit.teaches, stage.run.ledger.read(stage.index, step)))

    return PastUpdates(stage.ledger_steps(), of, teaches=teaches)


def _update(
    learner: Learner,
    settings: Grpo,
    batches: Batches,
    off_policy: OffPolicy,
) -> list[StepResult]:
    """One optimizer step per batch; the ratio of each is against the policy before the first.

    PPO, arXiv 1707.06347.
    """
    if not batches:
        return []
    loss, temperature = settings.loss, settings.sampling.temperature
    several = len(batches) > 1
    old = [learner.logprobs(batch, temperature) if several else None for batch in batches]
    results: list[StepResult] = []
    for batch, before in zip(batches, old, strict=True):
        if off_policy.active:
            now = before if before and not results else learner.logprobs(batch, temperature)
            batch = off_policy.kept(batch, now, before or now)
        results.append(learner.step(batch, loss, temperature, before))
    return results
