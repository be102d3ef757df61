"""Rejection sampling: learn from what the weights of now answer right.

    rounds: publish -> draw problems -> generate -> verify -> ledger
    then:   right, whole, readable, different answers ──> data/NN.jsonl <── a share of general data
    steps:  data/NN.jsonl -> token rows -> shuffled epochs -> learner.step -> log

As DeepSeek-R1 has it (arXiv 2501.12948, section 2.3.3). The data are durable before the first step
learns from them; once they are there, nothing is sampled again. What was drawn is in the ledger, so
that a run that is killed before makes the same file again.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec

from interlock.config.stages import RejectSft
from interlock.errors import ModelError, RunError, TaskError, TrainingError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.evaluate import room
from interlock.recipes.past import PastStage, PastUpdates, sampled
from interlock.recipes.readable import unreadable
from interlock.recipes.rollouts import Rollouts
from interlock.recipes.sft import (
    draw,
    drawn_updates,
    evaluation,
    learn,
    read,
    read_examples,
    training_groups,
)
from interlock.recipes.stage import Clock, Stage
from interlock.recipes.texts import Row, texts
from interlock.records.rl import Completion, FinishReason, ScoredGroup, Verdict
from interlock.rundir import write_atomically
from interlock.tasks import TaskSource
from interlock.tasks.data import find
from interlock.tasks.mixture import Verifiers, open_tasks

Content = dict[str, Any]  # a row of JSONL


class RejectData(NamedTuple):
    task: TaskSource
    tokenizer: Tokenizer
    limit: int  # tokens of a row
    mixed: list[list[Content]]  # the rows of each table of `mix`
    left_out: int  # of these, for their length
    files: Sequence[Path]


class Selection(NamedTuple):
    """What becomes of the answers: the rows, and how many were refused, by reason."""

    rows: list[Content]
    refused: Counter[str]


def prepare(settings: RejectSft, tokenizer: Tokenizer, context: int) -> RejectData:
    """Open the tasks and read what is mixed in, and try both. Raises UserError."""
    task = open_tasks(settings.task, room(settings.sampling.max_tokens, tokenizer, context))
    task.held_out(settings.eval.problems)
    task.check(settings.rounds, settings.problems_per_step)
    limit = min(settings.max_tokens, context)
    found = [read_examples(each.data, tokenizer, limit, settings.overlong) for each in settings.mix]
    mixed = [[row for row, own in rows if _all_fit(row, own, tokenizer)] for rows, _ in found]
    left_out = sum(number for _, number in found)
    files = [path for each in settings.mix for path in find(each.data).train]
    with Verifiers(settings.task):
        return RejectData(task, tokenizer, limit, mixed, left_out, [*task.files, *files])


def _all_fit(content: Content, own: Sequence[Row], tokenizer: Tokenizer) -> bool:
    """Whether none of a row's texts was left out."""
    return len(own) == len(texts(content, tokenizer))


def run(stage: Stage[RejectSft], data: RejectData) -> None:
    """Run the stage from where it stands to its last step."""
    settings, path = stage.settings, stage.run.data_file(stage.index, stage.settings.name)
    with Verifiers(settings.task) as verifier, ExitStack() as stack:
        evaluate = evaluation(stage, data.task, stack)
        if stage.done == 0 and not path.exists():
            stage.note_rows(data.task)
            stage.note_left_out(data.left_out)
            stage.begin(evaluate(0))
        if not path.exists():
            _sample(stage, data, verifier)
            write_atomically(path, _made(stage, data))
        elif stage.done < settings.rounds:
            stage.restored(settings.rounds)
        _check_unchanged(stage, path)
        rows, _ = read(path, data.tokenizer, data.limit)
        for step in stage.steps():
            clock = Clock()
            batch = draw(rows, settings.batch_size, step - settings.rounds, stage.seed(0))
            updated = learn(stage, step, training_groups(batch), clock)
            stage.finish_step(
                step, update=updated, seconds=clock.seconds(), held_out=evaluate(step)
            )


def past(stage: PastStage[RejectSft]) -> PastUpdates:
    """The updates on the rows that were made; before there are any, on what was sampled."""
    settings = stage.settings
    made = stage.run.rows_file(stage.index, settings.name)
    if not made.exists():
        return sampled(stage)
    rows, _ = read(made, stage.tokenizer, min(settings.max_tokens, stage.context))
    steps = range(settings.rounds + 1, settings.length + 1)
    return drawn_updates(rows, settings.batch_size, stage.seed, steps, settings.rounds)


def _sample(stage: Stage[RejectSft], data: RejectData, verifier: Verifiers) -> None:
    """The rounds that are still to do."""
    rollouts = Rollouts(stage, data.task)
    for step in range(stage.done + 1, stage.settings.rounds + 1):
        clock = Clock()
        with clock("publish"):
            stage.publish()
        recorded = stage.run.ledger.read(stage.index, step)
        scored = recorded or rollouts.judged(step, verifier, clock)
        stage.finish_step(
            step, rollout=rollouts.metrics(step, scored, 0), seconds=clock.seconds(), held_out=None
        )


def _made(stage: Stage[RejectSft], data: RejectData) -> bytes:
    """The data set, an object a line; what it is made of is an event."""
    rounds = range(1, stage.settings.rounds + 1)
    drawn = [group for step in rounds for group in stage.run.ledger.read(stage.index, step)]
    chosen = select(drawn, stage.settings, data.tokenizer, data.limit)
    answers = sum(len(group.verdicts) for group in drawn)
    reasons = ", ".join(f"{number} {reason}" for reason, number in chosen.refused.most_common())
    if not chosen.rows:
        ways = dict.fromkeys(_WAYS.get(why, _READABLE) for why, _ in chosen.refused.most_common())
        raise TrainingError(
            f"none of {answers} answers can be learned from ({reasons}); in a new run"
            f"{_begun(stage)}, {'; '.join(ways)}"
        )
    shares = [each.share for each in stage.settings.mix]
    mixed = mix(len(chosen.rows), data.mixed, shares, stage.seed(0))
    from_files = [
        {**row, "source": Path(each.data).name}
        for each, rows in zip(stage.settings.mix, mixed, strict=True)
        for row in rows
    ]
    lines = [msgspec.json.encode(row) for row in [*chosen.rows, *from_files]]
    content = b"".join(line + b"\n" for line in lines)
    problems = len({row["problem"] for row in chosen.rows})
    message = (
        f"stage {stage.index}: {len(chosen.rows)} of {answers} answers, to {problems} problems, "
        f"are kept{f' ({reasons})' if reasons else ''}; {len(from_files)} rows are mixed in"
    )
    facts = {"stage": str(stage.index), "sha256": hashlib.sha256(content).hexdigest()}
    stage.sinks.event(stage.run.event("data_made", message, **facts))
    return content


def _begun(stage: Stage[RejectSft]) -> str:
    """How a new run is spared the stages before."""
    if stage.index == 0:
        return ""
    before = stage.recipe.stage[stage.index - 1]
    left = stage.run.stage_weights(stage.index - 1, before.name)
    return f' (of this stage alone, with from = "{left}")' if left.is_dir() else ""


def select(
    drawn: Sequence[ScoredGroup], settings: RejectSft, tokenizer: Tokenizer, limit: int
) -> Selection:
    """The answers that are learned from, at most `keep` of a problem, in the order drawn.

    Two answers to a problem are the same when they differ in white space alone.
    """
    rows: list[Content] = []
    refused: Counter[str] = Counter()
    said: dict[str, set[str]] = {}
    for group in drawn:
        problem = group.group.problem
        known = said.setdefault(problem.id, set())
        answers = zip(group.group.completions, group.group.turns, group.verdicts, strict=True)
        for completion, turn, verdict in answers:
            words, why = " ".join(turn.split()), _why_not(completion, turn, verdict, settings)
            if why is None and words in known:
                why = "said before"
            if why is None and len(known) >= settings.keep:
                why = "more than keep"
            row: Content = {"messages": [*problem.messages, {"role": "assistant", "content": turn}]}
            if problem.template:
                row["chat_template_kwargs"] = problem.template
            why = why or _unfit(row, tokenizer, limit)
            if why is not None:
                refused[why] += 1
                continue
            known.add(words)
            about = {"problem": problem.id, "task": problem.task, "reward": verdict.reward}
            rows.append({**row, **about, "source": "sampled"})
    return Selection(rows, refused)


# What to do where all answers are refused, by what the two below say; else it is their form.
_WAYS = {
    "wrong": "raise rounds or completions, or train the model more before",
    "cut": "raise sampling.max_tokens, or end answers sooner by sampling.stop",
    "too long": "raise max_tokens of the stage",
    "ended by the thinking budget": "raise sampling.thinking_budget",
    "not judged": "mend its verifier, whose failures are among the events",
}
_READABLE = "ask for less in [stage.readable], or train the model more before"


def _why_not(
    completion: Completion, turn: str, verdict: Verdict, settings: RejectSft
) -> str | None:
    if not verdict.status.judged:
        return "not judged"
    if not verdict.right:
        return "wrong"
    if completion.finish is not FinishReason.STOP:
        return "cut"
    if not all(completion.mask):
        return "ended by the thinking budget"  # in words that the policy did not choose
    if not turn.strip():
        return "empty"
    return unreadable(turn, settings.readable)


def _unfit(row: Content, tokenizer: Tokenizer, limit: int) -> str | None:
    try:
        found = texts(row, tokenizer)
    except (ModelError, TaskError):
        return "changed by the chat template"
    return "too long" if max(len(row.tokens) for row in found) > limit else None


def mix(
    kept: int, files: Sequence[Sequence[Content]], shares: Sequence[float], seed: int
) -> list[list[Content]]:
    """Rows of each file so that they make up its share of all, `kept` others included; all of a
    file's rows where it has fewer. In the order of the file.
    """
    own = 1 - sum(shares)
    found = []
    for place, (rows, share) in enumerate(zip(files, shares, strict=True)):
        wanted = min(len(rows), round(kept * share / own))
        chosen = sorted(Random(f"{seed}/mix/{place}").sample(range(len(rows)), wanted))
        found.append([rows[at] for at in chosen])
    return found


def _check_unchanged(stage: Stage[RejectSft], path: Path) -> None:
    """Raise RunError when the data are not those that were made."""
    known = [
        event.facts.get("sha256")
        for event in stage.run.events()
        if event.kind == "data_made" and event.facts.get("stage") == str(stage.index)
    ]
    if not known or hashlib.sha256(path.read_bytes()).hexdigest() != known[-1]:
        raise RunError(
            f"{path} is not what stage {stage.index} made; put that back, or remove it, and it is "
            "made again from the ledger"
        )
