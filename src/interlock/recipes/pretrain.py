"""Pretraining: plain texts, one after another, in rows of one length.

    JSONL -> texts' tokens -> epochs in another order each -> a stream ──cut──> rows
    row -> pieces of texts -> learner.step -> log

    stream  a a a a a b b b c c c c d d
    rows   [a a a a][a b b b][c c c c]    a piece sees none of its neighbours, and its first token
                                          is read and not predicted

What is cut off at a row's end begins the next row anew. The end of an epoch that fills no row goes
on into the next.
"""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from interlock.config.stages import Pretrain
from interlock.errors import TaskError
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.evaluate import is_due, room
from interlock.recipes.past import PastStage, PastUpdate, PastUpdates, likelihood
from interlock.recipes.sft import evaluation, learn, read_examples, shuffled, training_groups
from interlock.recipes.stage import Clock, Stage
from interlock.recipes.texts import Row
from interlock.tasks import TaskSource
from interlock.tasks.data import find
from interlock.tasks.mixture import Verifiers, open_tasks

_WHOLE = 10**9  # tokens: a text is of any length


class PretrainData(NamedTuple):
    texts: list[list[int]]  # tokens of each
    held_out: list[list[int]]
    row: int  # tokens
    task: TaskSource | None
    files: Sequence[Path]


def prepare(settings: Pretrain, tokenizer: Tokenizer, context: int) -> PretrainData:
    """Read and tokenise the texts, and try the tasks. Raises UserError, with file and line."""
    found = _read(settings, tokenizer, context)
    if not settings.task:
        return found
    task = open_tasks(settings.task, room(settings.sampling.max_tokens, tokenizer, context))
    task.held_out(settings.eval.problems)
    with Verifiers(settings.task):
        return found._replace(task=task, files=[*found.files, *task.files])


def _read(settings: Pretrain, tokenizer: Tokenizer, context: int) -> PretrainData:
    """The texts alone."""
    row = settings.row_tokens or context
    if row > context:
        raise TaskError(
            f"row_tokens = {row} is more than the model's context of {context}; lower it"
        )
    examples, _ = read_examples(settings.data, tokenizer, _WHOLE)
    if not all("text" in content for content, _ in examples):
        raise TaskError(
            f'{settings.data} has a row that is no {{"text": …}}; chats are for an sft stage'
        )
    texts = [text.tokens for _, own in examples for text in own]
    if settings.held_out >= len(texts):
        raise TaskError(
            f"held_out = {settings.held_out} leaves none of the {len(texts)} texts of "
            f"{settings.data}; lower it"
        )
    learned = len(texts) - settings.held_out
    return PretrainData(texts[:learned], texts[learned:], row, None, find(settings.data).train)


def run(stage: Stage[Pretrain], data: PretrainData) -> None:
    """Run the stage from where it stands to its last step."""
    settings, stream = stage.settings, Stream(data.texts, stage.seed(0))
    with ExitStack() as stack:
        evaluate = evaluation(stage, data.task, stack)
        if stage.done == 0:
            if data.task is not None:
                stage.note_rows(data.task)
            stage.begin(evaluate(0), held_out_loss(stage, 0, data))
        for step in stage.steps():
            clock = Clock()
            groups = _groups(stream, step, settings.batch_size, data.row)
            updated = learn(stage, step, groups, clock)
            seconds = clock.seconds()
            rate = (updated.tokens or 0) / (seconds.update or 1)
            stage.finish_step(
                step,
                update=replace(updated, tokens_per_s=rate),
                seconds=seconds,
                held_out=evaluate(step),
                held_out_loss=held_out_loss(stage, step, data),
            )


def past(stage: PastStage[Pretrain]) -> PastUpdates:
    """The updates of all steps: their rows are a function of the texts and the step."""
    settings = stage.settings
    data = _read(settings, stage.tokenizer, stage.context)
    stream = Stream(data.texts, stage.seed)

    def of(learner: Learner, step: int) -> PastUpdate:
        return likelihood(learner, _groups(stream, step, settings.batch_size, data.row))

    return PastUpdates(range(1, settings.steps + 1), of)


def _groups(stream: "Stream", step: int, batch: int, row: int) -> list[TrainingGroup]:
    """What one step (from 1) predicts."""
    first = (step - 1) * batch
    pieces = [piece for at in range(first, first + batch) for piece in stream.row(at, row)]
    return training_groups(learnable(pieces))


class Stream:
    """The texts of one epoch after another, each epoch in another order, as tokens."""

    def __init__(self, texts: Sequence[list[int]], seed: int) -> None:
        self._texts, self._seed = texts, seed
        self._size = sum(map(len, texts))
        self._epochs: dict[int, tuple[list[int], list[int]]] = {}

    def row(self, number: int, length: int) -> list[list[int]]:
        """The pieces of texts in one row (from 0), `length` tokens in all. A function of the
        texts, the seed and the arguments alone.
        """
        pieces, at, left = [], number * length, length
        while left:
            epoch, inside = divmod(at, self._size)
            order, ends = self._epoch(epoch)
            place = bisect_right(ends, inside)
            begin = inside - (ends[place - 1] if place else 0)
            piece = self._texts[order[place]][begin : begin + left]
            pieces.append(piece)
            at, left = at + len(piece), left - len(piece)
        return pieces

    def _epoch(self, epoch: int) -> tuple[list[int], list[int]]:
        """The order of the texts, and where each ends."""
        if epoch not in self._epochs:
            self._epochs.pop(epoch - 2, None)
            order = shuffled(len(self._texts), epoch, self._seed)
            ends = list(accumulate(len(self._texts[each]) for each in order))
            self._epochs[epoch] = order, ends
        return self._epochs[epoch]


def learnable(pieces: Sequence[list[int]]) -> list[Row]:
    """A piece of one token predicts nothing, and is left out."""
    return [Row(piece, [True] * len(piece)) for piece in pieces if len(piece) > 1]


def held_out_loss(stage: Stage[Pretrain], step: int, data: PretrainData) -> float | None:
    """Nats per token of the held-out texts after `step` updates, when that is due."""
    if not data.held_out or not is_due(stage, step):
        return None
    stage.sinks.phase("evaluating")
    parts = [
        text[at : at + data.row] for text in data.held_out for at in range(0, len(text), data.row)
    ]
    groups: list[TrainingGroup] = training_groups(learnable(parts))
    found = [part for group in stage.learner.logprobs(groups) for part in group]
    return -sum(float(part.double().sum()) for part in found) / sum(map(len, found))
