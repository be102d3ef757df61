"""Supervised fine-tuning: on chats (loss on the assistant's tokens) or plain text (pretraining).

a file of data ─────────────────┐
rows that an earlier stage made ┼─> token rows (texts.py) -> shuffled epochs -> learner.step -> log
worked solutions of a task ─────┘

The last two are JSONL in data/ of the run directory.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from interlock.config.fields import Overlong, ThinkingSwitch
from interlock.config.stages import Sft, StageSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.evaluate import held_out_score, room
from interlock.recipes.past import PastStage, PastUpdate, PastUpdates, likelihood
from interlock.recipes.stage import Clock, Stage, update_metrics
from interlock.recipes.texts import Row, texts
from interlock.records.metrics import UpdateMetrics
from interlock.records.rl import Problem, Score
from interlock.rundir import write_atomically
from interlock.tasks import TaskSource
from interlock.tasks.data import find, rows_of
from interlock.tasks.mixture import Verifiers, open_tasks
from interlock.tasks.rows import Row as DataRow
from interlock.tasks.rows import row_errors
from interlock.tasks.worked import open_solver


class Data(NamedTuple):
    rows: list[Row]  # [] of an earlier stage, before there are any
    left_out: int  # rows longer than max_tokens
    worked: list[DataRow]  # the rows, where they were made of a task's problems
    tokenizer: Tokenizer
    limit: int  # tokens of a row
    task: TaskSource | None
    files: Sequence[Path]  # all that the rows, and the task, hang on


def prepare(settings: Sft, tokenizer: Tokenizer, context: int) -> Data:
    """Read and tokenise the data, and try the task. Raises UserError, with file and line."""
    limit, rows, left_out = min(settings.max_tokens, context), list[Row](), 0
    solved, files = list[DataRow](), list[Path]()
    task: TaskSource | None = None
    if settings.task:
        task = open_tasks(settings.task, room(settings.sampling.max_tokens, tokenizer, context))
        task.held_out(settings.eval.problems)
        files += task.files
    if task is not None and settings.worked:
        solved = solutions(settings.task, task.train(1, settings.worked))
        rows = [row for each in solved for row in texts(each, tokenizer, settings.thinking_switch)]
        if (longest := max(len(row.tokens) for row in rows)) > limit:
            raise TaskError(f"a worked solution has {longest} tokens; raise max_tokens = {limit}")
    elif settings.rows_of is None:
        files += find(settings.data).train
        how = settings.overlong, settings.thinking_switch, settings.thinking_share
        rows, left_out = read(settings.data, tokenizer, limit, *how)
    found = Data(rows, left_out, solved, tokenizer, limit, task, files)
    if settings.task:
        with Verifiers(settings.task):
            pass
    return found


def solutions(tasks: Sequence[TaskSettings], problems: Sequence[Problem]) -> list[DataRow]:
    """Each problem as a row of data, with its worked solution. Raises TaskError."""
    solvers = {task.called: open_solver(task) for task in tasks}
    rows: list[DataRow] = []
    for problem in problems:
        turn = {"role": "assistant", "content": solvers[problem.task](problem)}
        row: DataRow = {"messages": [*problem.messages, turn]}
        if problem.template:
            row["chat_template_kwargs"] = problem.template
        rows.append({**row, "problem": problem.id, "source": "worked"})
    return rows


def run(stage: Stage[Sft], data: Data) -> None:
    """Run the stage from where it stands to its last step."""
    rows, left_out = _rows(stage, data)
    if stage.done == 0:
        stage.note_left_out(left_out)
        if (unclosed := data.tokenizer.unclosed) is not None:
            stage.event(
                "turns_unclosed",
                f"the chat template closes turns with {unclosed[:40]!r}, which is no token of "
                "the model: nothing stops there but sampling.stop",
            )
        if data.task is not None:
            stage.note_rows(data.task)
    with ExitStack() as stack:
        evaluate = evaluation(stage, data.task, stack)
        if stage.done == 0:
            stage.begin(evaluate(0))
        for step in stage.steps():
            clock = Clock()
            batch = draw(rows, stage.settings.batch_size, step, stage.seed(0))
            updated = learn(stage, step, training_groups(batch), clock)
            stage.finish_step(
                step, update=updated, seconds=clock.seconds(), held_out=evaluate(step)
            )


def past(stage: PastStage[Sft]) -> PastUpdates:
    """The updates of all steps: their rows are a function of the data and the step."""
    settings, known = stage.settings, stage.tokenizer
    limit = min(settings.max_tokens, stage.context)
    how = settings.overlong, settings.thinking_switch, settings.thinking_share
    place = [each.get("name") for each in stage.run.config["stage"]].index
    if settings.rows_of is not None:
        made = stage.run.rows_file(place(settings.rows_of), settings.rows_of)
        rows = read(made, known, limit, *how)[0]
    elif settings.worked:
        made = stage.run.rows_file(stage.index, settings.name)
        found = [content for _, _, content in rows_of([made])]
        rows = [row for each in found for row in texts(each, known, settings.thinking_switch)]
    else:
        rows = read(settings.data, known, limit, *how)[0]
    return drawn_updates(rows, settings.batch_size, stage.seed, range(1, settings.steps + 1))


def drawn_updates(
    rows: Sequence[Row], batch: int, seed: int, steps: range, before: int = 0
) -> PastUpdates:
    """Those of rows that are drawn; `before`: the steps of the stage that draw none."""

    def of(learner: Learner, step: int) -> PastUpdate:
        return likelihood(learner, training_groups(draw(rows, batch, step - before, seed)))

    return PastUpdates(steps, of)


def _rows(stage: Stage[Sft], data: Data) -> tuple[list[Row], int]:
    """What is learned, and how many rows are too long for it."""
    settings = stage.settings
    if data.worked and stage.done == 0:
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in data.worked)
        write_atomically(stage.run.data_file(stage.index, settings.name), lines)
    if settings.rows_of is None:
        return data.rows, data.left_out
    how = settings.overlong, settings.thinking_switch, settings.thinking_share
    return read(stage.made_by(settings.rows_of), data.tokenizer, data.limit, *how)


def learn(
    stage: Stage[StageSettings], step: int, groups: Sequence[TrainingGroup], clock: Clock
) -> UpdateMetrics:
    """One optimizer step on what is to be predicted, timed."""
    stage.sinks.phase("updating")
    with clock("update"), stage.threads(step):
        result = stage.learner.step(groups, loss=None)
    stage.note_bad(step, [result])
    return update_metrics([result])


def read(
    path: str | Path,
    tokenizer: Tokenizer,
    max_tokens: int,
    overlong: Overlong = "refuse",
    switch: ThinkingSwitch = "template",
    share: float | None = None,
) -> tuple[list[Row], int]:
    """The training texts of a data set, and how many longer than `max_tokens` were left out.

    What a row may be is in tasks/columns.py, what becomes of it in texts.py. Raises TaskError with
    file and line, for a longer text too unless `overlong` is "leave_out".
    """
    found, left_out = read_examples(path, tokenizer, max_tokens, overlong, switch, share)
    return [row for _, rows in found for row in rows], left_out


def read_examples(
    path: str | Path,
    tokenizer: Tokenizer,
    max_tokens: int,
    overlong: Overlong = "refuse",
    switch: ThinkingSwitch = "template",
    share: float | None = None,
) -> tuple[list[tuple[DataRow, list[Row]]], int]:
    """As `read`, each row of the data set with those of its texts that are not left out."""
    found, left_out = [], 0
    for file, number, content in rows_of(find(str(path)).train):
        rows = []
        with row_errors(file, number):
            thinks = None if share is None else _drawn(number) < share
            for row in texts(content, tokenizer, switch, thinks):
                if len(row.tokens) <= max_tokens:
                    rows.append(row)
                elif overlong == "refuse":
                    raise TaskError(
                        f"{len(row.tokens)} tokens are more than the {max_tokens} that max_tokens "
                        "and the model's context allow; raise max_tokens, or leave such rows out: "
                        'overlong = "leave_out"'
                    )
                else:
                    left_out += 1
        if rows:
            found.append((content, rows))
    if not found:
        raise TaskError(f"{path} has no usable row: all {left_out} are longer than {max_tokens}")
    return found, left_out


def _drawn(number: int) -> float:
    """Of a row, in [0, 1): by its line alone, so that a resumed run's rows think alike."""
    digest = hashlib.blake2b(f"thinks {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def draw(rows: Sequence[Row], count: int, step: int, seed: int) -> list[Row]:
    """The rows of one step (from 1), epoch after epoch, each in a new order.

    A function of its arguments alone, so a resumed run needs no iterator state.
    """
    first = (step - 1) * count
    return [
        rows[shuffled(len(rows), at // len(rows), seed)[at % len(rows)]]
        for at in range(first, first + count)
    ]


@lru_cache(maxsize=4)
def shuffled(count: int, epoch: int, seed: int) -> list[int]:
    """The order of an epoch: places from 0."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def training_groups(rows: Sequence[Row]) -> list[TrainingGroup]:
    """Each row as a group of one; every learned token of the batch has the same weight."""
    learned = sum(sum(row.learned[1:]) for row in rows)
    groups = []
    for tokens, mask in rows:
        start = max(1, mask.index(True))  # what comes before needs no loss, only to be read
        weights = [float(flag) / learned for flag in mask[start:]]
        groups.append(
            TrainingGroup(
                prompt=tokens[:start],
                completions=[tokens[start:]],
                weights=[weights],
                sampler_logprobs=None,
                kl_weights=None,
            )
        )
    return groups


def evaluation(
    stage: Stage[StageSettings], task: TaskSource | None, stack: ExitStack
) -> Callable[[int], Score | None]:
    """The held-out score after a step, where the stage has a task."""
    if task is None:
        return lambda step: None
    problems = task.held_out(stage.settings.eval.problems)
    verifier = stack.enter_context(Verifiers(stage.settings.task))

    return lambda step: held_out_score(stage, step, problems, verifier)
