"""Accuracy on problems that training never sees: of a greedy answer, or of several drawn ones."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec.structs import replace

from interlock.config.reading import parse_recipe
from interlock.config.schema import GeneratorSettings
from interlock.config.stages import StageSettings
from interlock.config.tasks import EvaluationSettings, TaskSettings
from interlock.errors import ConfigError, TaskError, TooFewProblems, TrainingError
from interlock.models.fetch import find_model
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.recipes import inputs
from interlock.recipes.sinks import Sink
from interlock.recipes.stage import Stage
from interlock.records.passes import passes
from interlock.records.rl import Attempt, Group, Problem, Sampling, Score, ScoredGroup
from interlock.rundir import RunDir
from interlock.tasks.mixture import Verifiers, open_tasks
from interlock.tasks.sources import Unfit
from interlock.text import one_line
from interlock.workers.generator import open_generator
from interlock.workers.generators import Generators, Outcome, Purpose, Work
from interlock.workers.inline import Inline

_RENDERED = ("messages", "add_generation_prompt", "tools")  # what a template is told anyway
_LOOK_S = 0.5  # the longest wait at a time
_UNIT = 256  # no setting: a larger part changes no answer, and is lost with a worker as a whole


def score(
    groups: Sequence[Group],
    verifier: Verifiers,
    max_tokens: int | None = None,
    step: int | None = None,
) -> list[ScoredGroup]:
    """Judge every completion of every group, in order.

    As `grade`, but raises TrainingError when no answer could be judged: then nothing is learned or
    recorded, and a run can go on later.
    """
    scored = grade(groups, verifier, max_tokens, step)
    verdicts = [verdict for each in scored for verdict in each.verdicts]
    if verdicts and not any(verdict.status.counts for verdict in verdicts):
        raise TrainingError(
            f"none of {len(verdicts)} answers could be judged: {verdicts[0].cause}; mend that, "
            "then go on with --resume"
        )
    return scored


def grade(
    groups: Sequence[Group],
    verifier: Verifiers,
    max_tokens: int | None = None,
    step: int | None = None,
) -> list[ScoredGroup]:
    """Judge every completion of every group, in order. `step`: what learns from them, if any.

    What failed through no fault of an answer was tried again by the verifiers; where it never went
    well, the verdict says so and counts nowhere.
    """
    answers = [
        Attempt(group.problem, turn, sum(each.mask), each.finish, max_tokens, step)
        for group in groups
        for turn, each in zip(group.turns, group.completions, strict=True)
    ]
    left = iter(verifier.verify(answers))
    return [ScoredGroup(group, [next(left) for _ in group.completions]) for group in groups]


class Asking(NamedTuple):
    """How held-out problems are asked."""

    sampling: Sampling
    samples: int = 1  # answers to each
    seed: int = 0  # of the noise, where there is any


def asking(how: EvaluationSettings, limits: Sampling, seed: int) -> Asking:
    """As the settings have it; of `limits` counts what ends an answer, and its thinking."""
    sampling = replace(limits, temperature=how.temperature, top_p=how.top_p, top_k=0, min_p=0.0)
    if how.samples == 1:
        return Asking(replace(sampling, temperature=0.0, top_p=1.0))
    return Asking(sampling, how.samples, seed)


def answer_held_out(
    problems: Sequence[Problem],
    generators: Generators,
    verifier: Verifiers,
    how: Asking,
    sink: Sink,
    unit: int = 0,
    exact: bool = True,
) -> list[ScoredGroup]:
    """The completions of each problem, judged.

    `unit`: problems given to a worker at a time; 0: shared evenly, at most _UNIT. `exact`: a worker
    computes each unit alone, so that one that is repeated gives the same bits. A problem that
    workers fail on again and again is left out; the run's events name it. Raises TrainingError when
    none is left.
    """
    sink.phase("evaluating", len(problems))
    unit = unit or min(_UNIT, -(-len(problems) // generators.size))
    for first in range(0, len(problems), unit):
        part = tuple(problems[first : first + unit])
        keys = tuple(range(first, first + len(part)))
        asked = how.samples, how.sampling, how.seed
        generators.order([Work(Purpose.EVALUATE, keys, part, *asked, exact)])
    outcomes: list[Outcome] = []
    while len(outcomes) < len(problems):
        outcomes += generators.collect(Purpose.EVALUATE, _LOOK_S)
        sink.workers(generators.facts())
    groups = [
        outcome.group
        for outcome in sorted(outcomes, key=lambda each: each.key)
        if outcome.group is not None
    ]
    if not groups:
        raise TrainingError(
            f"all {len(problems)} held-out problems were set aside: workers fail on every one; "
            "see the events"
        )
    return score(groups, verifier, how.sampling.max_tokens)


class Exam(NamedTuple):
    """What a model is measured on. Which problems are held out hangs on `room` alone of the
    limits, so that a run's own stay what they are when answers are given others.
    """

    task: Sequence[TaskSettings]
    problems: int  # of each task
    sampling: Sampling  # its limits are those of an answer
    room: int  # tokens of an answer, for which a problem that is held out must leave room
    clock: datetime | None = None  # what a chat template is told; None: the present
    how: EvaluationSettings = EvaluationSettings()  # but for `problems`
    files: Mapping[str, str] = MappingProxyType({})  # digests of a run's own, by name


def practised(directory: Path) -> Exam:
    """What a run was last measured on, as it was.

    Raises RunError when there is no run, ConfigError when it had no task.
    """
    with closing(RunDir.read(directory)) as run:
        recipe = parse_recipe(run.config, source=f"{directory}/config.json")
        recorded = run.manifest.inputs
    for index, stage in reversed(list(enumerate(recipe.stage))):
        if stage.task:
            limit = stage.sampling.max_tokens
            clock, how = recipe.model.clock, stage.eval
            files = inputs.of_stage(recorded, index)
            return Exam(stage.task, how.problems, stage.sampling, limit, clock, how, files)
    raise ConfigError(f"{directory} is a run without a task; say which with --task")


def measure(model: str, exam: Exam, settings: GeneratorSettings, sink: Sink) -> list[ScoredGroup]:
    """Answers of a model to the first held-out problems of each task.

    Raises UserError when the model, the task or the device is not fit, or a run's data are others.
    """
    directory = find_model(model, sink.note)
    context = read_architecture(directory).context
    tokenizer = Tokenizer.load(directory, clock=exam.clock)
    try:
        source = open_tasks(exam.task, room(exam.room, tokenizer, context))
    except TooFewProblems as error:
        if not exam.files:
            raise
        raise ConfigError(
            f"{inputs.lost(error, model)}, or say what to measure with --task"
        ) from None
    if (other := inputs.changed(source.files, exam.files)) is not None:
        raise ConfigError(
            f"{other} is not as {one_line(model, 200)} began with it, so that problems it learned "
            "may be asked; put it back, or say what to measure with --task"
        )
    generator = open_generator(settings, directory, None, "eval", exam.clock)
    generators = Inline(generator)
    generators.progress = sink.advance
    problems = source.held_out(exam.problems)
    with Verifiers(exam.task) as verifier:
        how = asking(exam.how, exam.sampling, seed=0)
        return answer_held_out(problems, generators, verifier, how, sink)


def room(max_tokens: int, tokenizer: Tokenizer, context: int) -> Unfit:
    """What tells why a prompt and its answer would not fit into the model's context, if so."""

    def unfit(problem: Problem) -> str | None:
        told(tokenizer, problem.template)
        length = len(tokenizer.chat(problem.messages, **problem.template))
        if length == 0:
            return "the chat template makes nothing of it; mend the template, or the row"
        if length + max_tokens <= context:
            return None
        return (
            f"a prompt of {length} tokens and sampling.max_tokens = {max_tokens} are more "
            f"than the model's context of {context}; "
            + ("lower max_tokens" if length < context else "shorten it")
        )

    return unfit


def told(tokenizer: Tokenizer, template: Mapping[str, Any]) -> None:
    """Raise TaskError where a chat template is told what it does not ask for."""
    for name in template:
        if name in _RENDERED or name not in (tokenizer.template or ""):
            raise TaskError(
                f"the chat template knows no {one_line(name, 40)!r}, which stage.task.template, "
                "task.thinking or a row tells it; remove that, or give [model] chat_template one "
                'that does; a model that was taught /no_think has thinking_switch = "tags"'
            )


def is_due(stage: Stage[StageSettings], step: int) -> bool:
    """Whether the weights after `step` updates are to be evaluated."""
    every, ends = stage.settings.eval.every, (0, stage.last)
    return step in ends or bool(every and step % every == 0)


def held_out_score(
    stage: Stage[StageSettings], step: int, problems: Sequence[Problem], verifier: Verifiers
) -> Score | None:
    """What answers are worth after `step` updates when an evaluation is due then, else None.

    The answers are kept in the ledger; one that is there already is not computed again.
    """
    if not is_due(stage, step):
        return None
    scored = stage.run.ledger.read_evaluation(stage.index, step)
    if not scored:
        stage.publish()
        assert stage.generators is not None
        how = asking(stage.settings.eval, stage.settings.sampling, stage.seed(0))
        unit = stage.recipe.fleet.unit
        scored = answer_held_out(
            problems, stage.generators, verifier, how, stage.sinks, unit, stage.exact
        )
        stage.note_not_judged(step, scored)
        stage.run.ledger.record_evaluation(stage.index, step, scored)
    found = passes(scored, stage.settings.eval.pass_at)
    result = Score.of(scored)._replace(
        pass_at={k: share.mean for k, share in found.items() if share.problems},
        problems=len(scored) if stage.settings.eval.samples > 1 else None,
    )
    stage.sinks.evaluated(step, result)
    return result
