"""Group relative policy optimization: learning from rewards that a program can verify.

    publish -> draw problems -> generate -> verify -> advantages -> pack -> learner.step -> log
               └──────── rollouts.judged ────────┘    └─ minibatches ──┘

The advantage of a completion is its reward against the other completions of the same problem;
there is no value model. Groups whose rewards are all equal teach nothing: they are left out, and
counted.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import sqrt
from statistics import fmean

from interlock.chips import heap
from interlock.config.losses import LossSettings
from interlock.config.stages import Grpo
from interlock.learner.learner import StepResult
from interlock.learner.packing import TrainingGroup
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.evaluate import held_out_score, room
from interlock.recipes.guard import Guard, label
from interlock.recipes.rollouts import Rollouts
from interlock.recipes.stage import Clock, Stage, update_metrics
from interlock.records.rl import Completion, Group, ScoredGroup
from interlock.tasks import TaskSource
from interlock.tasks.mixture import Verifiers, open_tasks

MOST_ADVANTAGE = 10**9


def prepare(settings: Grpo, tokenizer: Tokenizer, context: int) -> TaskSource:
    """Open the tasks, and try each: its problems, its verifier, and whether prompts fit the model.

    Raises UserError when the stage could not even take its first step.
    """
    task = open_tasks(settings.task, room(settings.sampling.max_tokens, tokenizer, context))
    task.held_out(settings.eval.problems)
    task.check(settings.steps, settings.problems_per_step)
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
        rollouts, guard = Rollouts(stage, task), Guard(stage)
        for step in stage.steps():
            clock = Clock()
            with clock("publish"):
                stage.publish()
            recorded = stage.run.ledger.read(stage.index, step)
            scored = recorded or rollouts.judged(step, verifier, clock)
            batches = minibatches(scored, settings, rollouts.staleness)
            with clock("update"), heap.apart(), stage.threads(step):
                updates = _update(stage, batches)
            stage.note_bad(step, updates)
            skipped = len(scored) - sum(map(len, batches))
            stage.finish_step(
                step,
                rollout=rollouts.metrics(scored, skipped),
                update=update_metrics(updates),
                seconds=clock.seconds(),
                workers=guard.judge(step, updates, fresh=not recorded),
                held_out=held_out_score(stage, step, held_out, verifier),
            )


def advantages(rewards: Sequence[float], kind: str) -> list[float]:
    """How much better each completion did than its group; all zero when the rewards are equal.

    "mean_std": (r - mean) / std, GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2).
    "mean": r - mean, Dr.GRPO (arXiv 2503.20783): no problem counts more for being lopsided.

    Rewards are of any size: equal are those that differ by a millionth of the largest or less, and
    no advantage is above MOST_ADVANTAGE, which float32 still takes and clip_norm cuts down anyway.
    """
    exact = [Fraction(reward) for reward in rewards]
    middle = sum(exact, Fraction()) / len(exact)
    if max(exact) - min(exact) <= max(map(abs, exact)) / 10**6:
        return [0.0] * len(rewards)
    apart = [reward - middle for reward in exact]
    if kind == "mean":
        most = Fraction(MOST_ADVANTAGE)
        return [float(max(-most, min(each, most))) for each in apart]
    farthest = max(map(abs, apart))
    units = [float(each / farthest) for each in apart]
    spread = sqrt(fmean(unit**2 for unit in units))
    return [unit / spread for unit in units]


def minibatches(
    scored: Sequence[ScoredGroup], settings: Grpo, staleness: Callable[[Group], int]
) -> list[list[TrainingGroup]]:
    """The groups that teach something, dealt out to the optimizer steps of this batch.

    Each is labelled with its worker and staleness: mismatch is measured by these (guard.py).
    """
    kind, updates = settings.loss.advantage, settings.updates_per_step
    taught = [group for group in scored if any(advantages(group.rewards, kind))]
    parts = [taught[first::updates] for first in range(updates)]
    return [training_groups(part, settings, staleness) for part in parts if part]


def training_groups(
    scored: Sequence[ScoredGroup], settings: Grpo, staleness: Callable[[Group], int]
) -> list[TrainingGroup]:
    """The groups of one optimizer step, each sampled token weighted by advantage times share."""
    loss = settings.loss
    shares = _shares(scored, loss, settings.sampling.max_tokens)
    return [
        TrainingGroup(
            prompt=group.group.prompt_tokens,
            completions=[answer.tokens for answer in group.group.completions],
            weights=[
                _where_sampled(answer, advantage * share)
                for advantage, share, answer in zip(
                    advantages(group.rewards, loss.advantage),
                    shares[index],
                    group.group.completions,
                    strict=True,
                )
            ],
            sampler_logprobs=[answer.logprobs for answer in group.group.completions],
            kl_weights=[
                _where_sampled(answer, loss.kl_beta * share)
                for share, answer in zip(shares[index], group.group.completions, strict=True)
            ]
            if loss.kl_beta
            else None,
            label=label(group.group.worker, staleness(group.group)),
        )
        for index, group in enumerate(scored)
    ]


def _where_sampled(answer: Completion, weight: float) -> list[float]:
    """[N]: what was given, such as a tool's result, is read and not learned."""
    return [weight if sampled else 0.0 for sampled in answer.mask]


def _shares(
    groups: Sequence[ScoredGroup], loss: LossSettings, max_tokens: int
) -> list[list[float]]:
    """The share of the whole loss that one sampled token of each completion has.

    "token": every token counts the same (DAPO, arXiv 2503.14476). "sequence": every completion
    counts the same, its tokens share that (GRPO, arXiv 2402.03300). "constant": a token counts
    1 / max_tokens of a completion (Dr.GRPO, arXiv 2503.20783).
    """
    lengths = [[sum(answer.mask) for answer in group.group.completions] for group in groups]
    tokens, count = sum(map(sum, lengths)), sum(map(len, lengths))
    match loss.normalize:
        case "token":
            return [[1 / tokens for _ in group] for group in lengths]
        case "sequence":
            return [[1 / (count * length) for length in group] for group in lengths]
        case "constant":
            return [[1 / (count * max_tokens) for _ in group] for group in lengths]


def _update(stage: Stage[Grpo], batches: Sequence[list[TrainingGroup]]) -> list[StepResult]:
    """One optimizer step per batch; the ratio of each is against the policy before the first.

    PPO, arXiv 1707.06347.
    """
    if not batches:
        return []
    stage.sinks.phase("updating")
    learner, loss = stage.learner, stage.settings.loss
    temperature = stage.settings.sampling.temperature
    if len(batches) == 1:
        return [learner.step(batches[0], loss, temperature)]
    old = [learner.logprobs(batch, temperature) for batch in batches]
    return [
        learner.step(batch, loss, temperature, logprobs)
        for batch, logprobs in zip(batches, old, strict=True)
    ]
