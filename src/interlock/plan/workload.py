"""What a recipe asks of its chips, stage by stage, in the words of the formulas.

    Recipe ──workloads──> [StageWork]: problems, completions, lengths, passes, steps, verification

What a recipe does not say, and no run has measured, is assumed and named: how long answers become,
how long prompts are, how long it takes to judge an answer.
"""

from typing import NamedTuple

import msgspec

from interlock.config.schema import Recipe
from interlock.config.stages import (
    Distill,
    Grpo,
    Pretrain,
    RejectSft,
    Sampled,
    Sft,
    StageSettings,
)
from interlock.plan.constants import Rates
from interlock.plan.lengths import AnswerLengths
from interlock.plan.seconds import StepLoad
from interlock.plan.shapes import ModelShape
from interlock.plan.stage_models import TeacherWork, stage_shapes, teachers_of
from interlock.plan.typical import thinks, typical_lengths

_PROMPT_TOKENS = 115.0  # as most published rows have
# A row of SFT: half of max_tokens, and no more than thoughts with an answer are; assumed.
_ROW_SHARE, _LONG_ROW = 0.5, 4000.0
_ROW_TOKENS = 4096  # of a row of pretraining that has the model's context; assumed
_EXTRA_DRAWN = 0.5  # of the extra groups that a step may make; assumed
# Seconds to judge an answer, by what the task's name begins with; assumed.
_VERIFY_S = {"code": 2.0, "gsm8k": 0.02, "arithmetic": 1e-3, "reasoning-gym": 0.01, "jsonl": 0.02}
_JUDGED_S = 5.0  # by a model
_CHANGED_AT = (1e-6, 0.0036)  # share of bfloat16 weights that a step changes at this rate; measured
_CHANGED_EXPONENT = 0.745  # through 2 % at 1e-5, which was measured as well
_MOST_CHANGED = 0.33  # of a delta: beyond it no places are told, and it hardly grows


class StageWork(msgspec.Struct, frozen=True):
    """One stage, as a plan sees it. Tokens, seconds, counts."""

    name: str  # "stage 0, grpo"
    place: int  # of the recipe's stage
    shape: ModelShape  # of what learns
    steps: int
    problems: float  # per step; of SFT the rows
    completions: float  # of each
    prompt_tokens: float
    max_tokens: float
    mean_tokens: float | None  # of an answer; None: as the model's kind does
    model: str
    samples: bool  # whether it generates to learn
    learns: bool
    updates: float  # optimizer steps of a step
    scored: float  # passes of its own shape for log-probabilities beside the update
    teachers: tuple[TeacherWork, ...]
    reference: bool  # a copy of the weights is kept
    drawn: float  # groups that are generated for one that is learned from
    staleness: int  # weight versions that a group may be behind
    verify_s: float  # one answer
    verifiers: float  # at work at the same time
    changed: float  # share of the weights that a step changes
    whole_every: int  # versions, of which one is sent whole
    evaluations: float  # in the whole stage
    evaluated: float  # answers of each
    evaluated_prompt: float  # tokens; where it does not sample, else as above
    evaluated_most: float
    evaluated_mean: float | None
    recompute: bool
    checkpoints: float  # in the whole stage
    assumed: tuple[str, ...]

    def lengths(self, rates: Rates) -> AnswerLengths:
        return self._lengths(rates, self.mean_tokens, self.max_tokens)

    def _lengths(self, rates: Rates, mean: float | None, most: float) -> AnswerLengths:
        if mean is None:
            return typical_lengths(self.model, most, rates.spread, rates.endless)
        mean = min(mean, most)
        return AnswerLengths(mean, most, rates.spread, rates.endless if mean > 1 else 0.0)

    def load(self, rates: Rates) -> StepLoad:
        completions = self.problems * self.completions
        lengths = self.lengths(rates)
        return StepLoad(self.problems, completions, self.prompt_tokens, lengths, packed=True)

    def evaluation(self, rates: Rates) -> StepLoad:
        """The answers of one."""
        prompt, lengths = self.prompt_tokens, self.lengths(rates)
        if not self.samples:  # rows are learned from, and answers are of other lengths
            prompt = self.evaluated_prompt
            lengths = self._lengths(rates, self.evaluated_mean, self.evaluated_most)
        return StepLoad(self.evaluated, self.evaluated, prompt, lengths, packed=True)


class GivenFigures(msgspec.Struct, frozen=True):
    """What a user or a run says of lengths and verification; None: nothing."""

    mean_tokens: float | None = None
    prompt_tokens: float | None = None
    verify_s: float | None = None


class _Asked(NamedTuple):
    """What every stage is planned from."""

    recipe: Recipe
    model: ModelShape  # of [model]
    shapes: list[ModelShape]  # of what each stage learns
    apart: bool
    known: GivenFigures


def workloads(
    recipe: Recipe, shape: ModelShape, apart: bool, known: GivenFigures | None = None
) -> list[StageWork]:
    """Every stage of the recipe; one that samples first and then learns is two.

    `shape`: of [model]; `apart`: whether generators have chips of their own. Raises ConfigError.
    """
    shapes = stage_shapes(recipe, shape)
    asked = _Asked(recipe, shape, shapes, apart, known or GivenFigures())
    found: list[StageWork] = []
    for place, stage in enumerate(recipe.stage):
        if isinstance(stage, Sampled):
            found.append(_sampled(asked, place, stage))
        if not isinstance(stage, Sampled) or isinstance(stage, RejectSft):
            found.append(_rows(asked, place, stage))
    return found


def _sampled(asked: _Asked, place: int, stage: Sampled) -> StageWork:
    """Of the steps that sample, and of what is learned from them at once."""
    recipe, known, rounds = asked.recipe, asked.known, isinstance(stage, RejectSft)
    assumed: list[str] = []
    base = _base(asked, place, stage, evaluated=not rounds)
    if known.prompt_tokens is None:
        assumed.append(f"prompts of {_PROMPT_TOKENS:g} tokens (--prompt-tokens)")
    if known.mean_tokens is None:
        kind = "thinks" if thinks(base.model) else "does not think"
        assumed.append(f"answers as long as of a model that {kind} (--mean-tokens)")
    elif known.mean_tokens > base.evaluated_most:
        assumed.append(_shortened(base.name, "answers", known.mean_tokens, base.evaluated_most))
    if isinstance(stage, Grpo):
        assumed.append("every group teaches; those of equal rewards would be skipped")
    teachers: tuple[TeacherWork, ...] = ()
    if isinstance(stage, Distill):
        teachers = teachers_of(
            stage.teacher, stage.task, recipe, asked.model, asked.shapes, assumed
        )
    verify, verifiers = _verification(stage, known, assumed)
    return msgspec.structs.replace(
        base,
        name=f"{base.name}: sampling" if rounds else base.name,
        steps=stage.sampled_steps,
        problems=float(stage.problems_per_step),
        completions=float(stage.completions),
        prompt_tokens=base.evaluated_prompt,
        max_tokens=base.evaluated_most,
        mean_tokens=base.evaluated_mean,
        samples=True,
        learns=not rounds,
        updates=0.0 if rounds else stage.updates / stage.steps,
        scored=_scored(stage),
        teachers=teachers,
        drawn=_drawn(stage),
        staleness=0 if rounds else _staleness(recipe, stage, asked.apart, assumed),
        verify_s=verify,
        verifiers=verifiers,
        assumed=tuple(assumed),
    )


def _rows(asked: _Asked, place: int, stage: StageSettings) -> StageWork:
    """Of the steps that learn from rows of data."""
    known = asked.known
    assumed: list[str] = []
    batch, longest, mean = _row_sizes(stage)
    if mean is None:
        mean = known.mean_tokens or min(longest * _ROW_SHARE, _LONG_ROW)
        if known.mean_tokens is None:
            assumed.append(f"rows of {mean:,g} tokens on average (--mean-tokens)")
        elif mean > longest:
            assumed.append(_shortened(f"stage {place}", "rows", mean, longest))
    if isinstance(stage, Pretrain) and not stage.row_tokens:
        assumed.append(f"rows of {longest} tokens (row_tokens)")
    base = _base(asked, place, stage, evaluated=True)
    return msgspec.structs.replace(
        base,
        name=f"{base.name}: learning" if isinstance(stage, RejectSft) else base.name,
        problems=float(batch),
        max_tokens=float(longest),
        mean_tokens=min(mean, float(longest)),
        verify_s=_verification(stage, known, [])[0],
        assumed=tuple(assumed),
    )


def _shortened(stage: str, what: str, given: float, most: float) -> str:
    return f"{what} of {most:,.10g} tokens in {stage}: its max_tokens allows no {given:,.10g}"


def _row_sizes(stage: StageSettings) -> tuple[int, int, float | None]:
    """Rows of a step, tokens of the longest, and their mean where all are as long."""
    if isinstance(stage, Pretrain):
        tokens = stage.row_tokens or _ROW_TOKENS
        return stage.batch_size, tokens, float(tokens)
    assert isinstance(stage, Sft | RejectSft)
    return stage.batch_size, stage.max_tokens, None


def _base(asked: _Asked, place: int, stage: StageSettings, evaluated: bool) -> StageWork:
    """What hangs on no kind of stage; the rest as of one row a step."""
    recipe, known = asked.recipe, asked.known
    lr = stage.optimizer.lr if stage.optimizer else 0.0
    every = stage.eval.every or stage.steps
    saved = stage.steps // recipe.checkpoint_every if recipe.checkpoint_every else 0
    return StageWork(
        name=f"stage {place}, {stage.kind}",
        place=place,
        shape=asked.shapes[place],
        steps=stage.steps,
        problems=1.0,
        completions=1.0,
        prompt_tokens=0.0,
        max_tokens=1.0,
        mean_tokens=1.0,
        model=f"{recipe.model.path} {asked.model.name}",
        samples=False,
        learns=True,
        updates=1.0,
        scored=0.0,
        teachers=(),
        reference=stage.keeps_reference,
        drawn=1.0,
        staleness=0,
        verify_s=0.0,
        verifiers=1.0,
        changed=changed_share(lr),
        whole_every=recipe.sync.anchor_every,
        evaluations=1.0 + stage.steps / every if stage.task and evaluated else 0.0,
        evaluated=float(stage.eval.problems * stage.eval.samples * len(stage.task)),
        evaluated_prompt=known.prompt_tokens or _PROMPT_TOKENS,
        evaluated_most=float(stage.sampling.max_tokens),
        evaluated_mean=known.mean_tokens,
        recompute=recipe.learner.activation_checkpointing,
        checkpoints=1.0 + saved if evaluated else 0.0,
        assumed=(),
    )


def _staleness(recipe: Recipe, stage: StageSettings, apart: bool, assumed: list[str]) -> int:
    """A recipe for one process says nothing of workers elsewhere: then as it would for those."""
    if not apart or stage.staleness is not None or recipe.fleet.kind != "inline":
        return recipe.staleness(stage)
    assumed.append("staleness 2, as where a fleet generates (stage.staleness)")
    return 2


def _scored(stage: StageSettings) -> float:
    """A reference's log-probabilities; the old ones, where one batch is learned from twice."""
    if isinstance(stage, Grpo):
        return float(stage.keeps_reference) + float(stage.updates_per_step > 1)
    return 0.0


def _drawn(stage: StageSettings) -> float:
    if not isinstance(stage, Grpo):
        return 1.0
    return 1.0 + _EXTRA_DRAWN * stage.extra_groups / stage.problems_per_step


def _verification(
    stage: StageSettings, known: GivenFigures, assumed: list[str]
) -> tuple[float, float]:
    """Seconds for one answer, the tasks weighed, and how many are judged at a time."""
    if not stage.task:
        return 0.0, 1.0
    workers = sum(task.judge.concurrency if task.judge else task.workers for task in stage.task)
    if known.verify_s is not None:
        return known.verify_s, float(workers)
    whole = sum(task.weight for task in stage.task)
    seconds = sum(
        task.weight / whole * (_JUDGED_S if task.judge else _usual_s(task.name))
        for task in stage.task
    )
    assumed.append(f"{seconds:.3g} s to judge an answer (--verify-s)")
    return seconds, float(workers)


def _usual_s(task: str) -> float:
    return _VERIFY_S.get(task.partition("/")[0], 0.02)


def changed_share(lr: float) -> float:
    """Of the published bfloat16 weights, what one step changes: a power law through two runs."""
    rate, share = _CHANGED_AT
    return min(_MOST_CHANGED, share * (lr / rate) ** _CHANGED_EXPONENT) if lr > 0 else 0.0
