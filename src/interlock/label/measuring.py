"""Measures a model on every problem of a data set: several answers each, judged twice.

    problems ──a part at a time──> engine ──> answers ──> verifier, twice ──> marks ──> a row each

A part that is done is in the file before the next begins. Answers hang on (seed, problem, sample)
alone, so a measurement that was cut off ends in the rows of one that was not.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from interlock import thinking
from interlock.config.reading import to_tree
from interlock.config.schema import GeneratorSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError
from interlock.label.marks import LabelAnswer, mark
from interlock.label.rows import LabelRow, Labels, LabelSetting, begun, held
from interlock.models.fetch import find_model
from interlock.models.huggingface import read_architecture
from interlock.models.identity import model_digest
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import (
    Attempt,
    FinishReason,
    Group,
    Problem,
    Sampling,
    Verdict,
)
from interlock.tasks import answers as spellings
from interlock.tasks import jsonl, modes, user_verifier
from interlock.tasks.mixture import Verifiers, written
from interlock.workers.generator import Generator, open_generator

_PART = 32  # problems that are in the file or made again


@dataclass(frozen=True)
class Measuring:
    """How problems are measured."""

    task: TaskSettings
    samples: int
    sampling: Sampling
    easy: float = 0.95  # shares of right answers from which, and up to which, a problem is no use
    hard: float = 0.0
    seed: int = 0


def label_all(
    how: Measuring,
    model: str,
    out: Path,
    generator: GeneratorSettings,
    note: Callable[[str], None],
    progress: Callable[[int, int, int], None],
) -> list[LabelRow]:
    """Label every problem of the task's training data, but those that `out` has already.

    Args:
        note: told what takes long.
        progress: told the problems done, all there are, and the tokens drawn so far.

    Returns the rows, in the order of the data. Raises UserError when the model, the data, the
    device or `out` is not fit; then nothing is written that was not there.
    """
    directory = find_model(model, note)
    problems, left_out = problems_of(how.task)
    context = read_architecture(directory).context
    if how.sampling.max_tokens >= context:
        raise ConfigError(
            f"--max-tokens {how.sampling.max_tokens}: prompt and answer have {context} tokens in "
            f"the context of {model}; give less"
        )
    for line in left_out:
        note(line)
    before = begun(out)
    clock = datetime.now().astimezone() if before is None else before.clock
    setting = _setting(how, model, directory, clock)
    with ExitStack() as stack:

        def opened() -> tuple[Generator, Verifiers]:
            engine = open_generator(generator, directory, None, "label", clock)
            return engine, stack.enter_context(Verifiers([how.task]))

        tools = opened() if before is None else None  # before anything is written
        stack.enter_context(held(out))
        labels = Labels(out, setting)
        left = [problem for problem in problems if not labels.has(problem)]
        if gone := len(labels.rows.keys() - {problem.id for problem in problems}):
            note(
                f"{gone:,} rows of {out} are of no problem of {how.task.options['path']}; they stay"
            )
        if left:
            engine, verifier = tools or opened()
            asked = _AskedColumns(how.task, problems)
            done, drawn = len(problems) - len(left), 0
            for first in range(0, len(left), _PART):
                part = left[first : first + _PART]
                for row in _measure(part, how, asked, engine, verifier, context):
                    labels.add(row)
                    drawn += sum(each.tokens for each in row.samples)
                progress(done + first + len(part), len(problems), drawn)
        return [labels.rows[problem.id] for problem in problems]


def _setting(how: Measuring, model: str, directory: Path, clock: datetime | None) -> LabelSetting:
    return LabelSetting(
        measured=to_tree(how.task),
        model=model,
        weights=model_digest(directory),
        inputs=_inputs(directory, how.task),
        clock=clock,
        samples=how.samples,
        temperature=how.sampling.temperature,
        top_p=how.sampling.top_p,
        max_tokens=how.sampling.max_tokens,
        seed=how.seed,
        stop=tuple(how.sampling.stop),
        easy=how.easy,
        hard=how.hard,
    )


def _inputs(directory: Path, task: TaskSettings) -> dict[str, str]:
    """Digests of what pass rates hang on, beside the weights and what is set."""
    tokenizer, options = Tokenizer.load(directory), jsonl.options_of(task)
    found = {"chat template": (tokenizer.template or "").encode()}
    found["tokenizer"] = (directory / "tokenizer.json").read_bytes()
    files = [] if options.verifier is None else user_verifier.sources(options.verifier)
    for path in [*files, *written(task)]:
        name = f"verifier file {path.name}"
        found[name] = found.get(name, b"") + path.read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def problems_of(task: TaskSettings) -> tuple[list[Problem], list[str]]:
    """-> all of its data's different training problems, and what was left out, in words

    Raises TaskError, and ConfigError for a task that is no data of questions and answers.
    """
    if task.name not in ("jsonl", "gsm8k"):
        raise ConfigError(
            f"task {task.name!r} has no data to label; give --task jsonl or gsm8k, or leave it out"
        )
    found, left_out = jsonl.training_rows(task)
    return [replace(modes.asked(each, task), task=task.called) for each in found], left_out


def _measure(
    part: Sequence[Problem],
    how: Measuring,
    asked: "_AskedColumns",
    engine: Generator,
    verifier: Verifiers,
    context: int,
) -> list[LabelRow]:
    """The rows of some problems, in order."""
    room = how.sampling.max_tokens
    lengths = {each.id: _prompt_tokens(engine.tokenizer, each) for each in part}
    fitting = [each for each in part if 0 < lengths[each.id] <= context - room]
    groups = engine.generate(fitting, how.samples, how.sampling, how.seed) if fitting else []
    twice = [verifier.verify(_attempts(groups, room)) for _ in range(2)]
    references = dict(zip((each.id for each in fitting), _takes(fitting, verifier), strict=True))
    rows, at = {}, 0
    for group in groups:
        size = len(group.completions)
        first, again = (verdicts[at : at + size] for verdicts in twice)
        at += size
        answers = [
            _answered(group, place, *pair)
            for place, pair in enumerate(zip(first, again, strict=True))
        ]
        takes = references[group.problem.id]
        rows[group.problem.id] = _row(group.problem, answers, takes, how, asked)
    for problem in part:
        if problem.id not in rows:
            why = f"its prompt has {lengths[problem.id]} tokens, of {context - room} there are"
            rows[problem.id] = LabelRow(
                id=problem.id,
                answer=problem.answer,
                mark="unfit",
                why=why,
                **asked.of(problem),
            )
    return [rows[problem.id] for problem in part]


def _prompt_tokens(tokenizer: Tokenizer, problem: Problem) -> int:
    return len(tokenizer.chat(problem.messages, **problem.template))


def _attempts(groups: Sequence[Group], room: int) -> list[Attempt]:
    return [
        Attempt(group.problem, turn, sum(each.mask), each.finish, room)
        for group in groups
        for turn, each in zip(group.turns, group.completions, strict=True)
    ]


def _takes(problems: Sequence[Problem], verifier: Verifiers) -> list[bool | None]:
    """Whether the verifier takes each reference, in the form that verifiers read most surely."""
    verdicts = verifier.verify([(each, f"\\boxed{{{each.answer}}}") for each in problems])
    plain = verifier.verify([(each, each.answer) for each in problems])
    return [
        (one.right or other.right) if one.status.counts and other.status.counts else None
        for one, other in zip(verdicts, plain, strict=True)
    ]


def _answered(group: Group, place: int, first: Verdict, again: Verdict) -> LabelAnswer:
    completion = group.completions[place]
    return LabelAnswer(
        text=completion.text,
        right=first.right if first.status.counts else None,
        tokens=sum(completion.mask),
        cut=completion.finish is FinishReason.LENGTH,
        again=again.right if again.status.counts else None,
        final=_final(group.turns[place]),
    )


def _row(
    problem: Problem,
    answers: Sequence[LabelAnswer],
    takes: bool | None,
    how: Measuring,
    asked: "_AskedColumns",
) -> LabelRow:
    judged = [each.right for each in answers if each.right is not None]
    found = mark(answers, takes, how.easy, how.hard)
    return LabelRow(
        id=problem.id,
        answer=problem.answer,
        mark=found.mark,
        why=found.why,
        pass_rate=sum(judged) / len(judged) if judged else None,
        answers=len(judged),
        discarded=len(answers) - len(judged),
        tokens=sum(each.tokens for each in answers) / len(answers),
        cut=sum(each.cut for each in answers) / len(answers),
        samples=list(answers),
        **asked.of(problem),
    )


class _AskedColumns:
    """What rows have of what was asked, so that a task of them asks the same; what the task sets
    for all, its system turn and what it tells the chat template, is set there again.
    """

    def __init__(self, task: TaskSettings, problems: Sequence[Problem]) -> None:
        self._task = task
        self._turns = any(len(self._own(each)) > 1 for each in problems)  # rows have one form

    def of(self, problem: Problem) -> dict[str, Any]:
        turns, common = self._own(problem), dict(self._task.template)
        if self._task.thinking is not None:
            common[modes.SWITCH] = self._task.thinking
        told = {
            name: value
            for name, value in problem.template.items()
            if name not in common or common[name] != value
        }
        question = turns if self._turns else turns[-1]["content"]
        return {"question": question, "chat_template_kwargs": told}

    def _own(self, problem: Problem) -> list[dict[str, str]]:
        return problem.messages[0 if self._task.system is None else 1 :]


def _final(turn: str) -> str | None:
    """What an answer comes to, where it says one thing: what is boxed, else its one value."""
    text = spellings.spelled(thinking.after(turn))
    boxed = set(spellings.boxed(text))
    if boxed:
        return boxed.pop() if len(boxed) == 1 else None
    return None if spellings.undecided(text) else spellings.last_value(text)
