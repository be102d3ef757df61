"""What a model answered, out of a run's ledger, as the live page shows it.

A step's rollouts; and one held-out problem at several evaluations, with the words that changed.
"""

import re
from difflib import SequenceMatcher
from typing import Any

from interlock.errors import RunError
from interlock.records.rl import ScoredGroup
from interlock.report.summary import ShownAnswer, answers_of, question_of
from interlock.rundir import RunView
from interlock.text import visible

_GROUPS, _ANSWERS = 4, 16  # of a step that are shown; the others are counted
_EVALUATIONS = 8  # that a problem is shown at, evenly chosen: the first and the last among them
_TEXT = 8000  # characters of an answer
_WORDS = 1500  # of two answers that are compared

Json = dict[str, Any]


def rollouts(view: RunView, stage: int, step: int) -> Json:
    """The groups of the recorded step that is nearest to this one, and its neighbours' places."""
    steps = view.ledger.steps()
    if not steps:
        return {"steps": 0, "groups": []}
    place = min(range(len(steps)), key=lambda i: _distance(steps[i], (stage, step)))
    groups, damage = view.ledger.whole(*steps[place])
    return {
        "damage": visible(damage),
        "steps": len(steps),
        "at": steps[place],
        "before": steps[place - 1] if place else None,
        "next": steps[place + 1] if place + 1 < len(steps) else None,
        "left_out": max(0, len(groups) - _GROUPS),
        "groups": [_group(group) for group in groups[:_GROUPS]],
    }


def held_out(view: RunView, problem: int) -> Json:
    """The answers to one held-out problem at several evaluations, each against the one before."""
    steps = view.ledger.evaluation_steps()
    most = min(len(steps), _EVALUATIONS)
    chosen = sorted({round(i * (len(steps) - 1) / max(1, most - 1)) for i in range(most)})
    found: list[Json] = []
    text: str | None = None
    count, damage = 0, ""
    for place in (steps[index] for index in chosen):
        try:
            scored = view.ledger.read_evaluation(*place)
        except RunError as error:  # the other evaluations are shown
            damage = damage or str(error)
            continue
        count = len(scored)
        if not scored:
            continue
        group = scored[problem % len(scored)]
        if found and found[0]["id"] != group.group.problem.id:  # another stage asks others
            found, text = [], None
        shown = answers_of(group)[0]
        told = {"at": place, "id": group.group.problem.id, "words": changes(text, shown.text)}
        found.append(told | _problem(group) | _answer(shown))
        text = shown.text
    return {"problems": count, "evaluations": found, "damage": visible(damage)}


def changes(old: str | None, new: str) -> list[tuple[str, str]]:
    """The words of both as pairs of "same", "gone" or "new" and text; None: there is no older."""
    before, after = _words(old or ""), _words(new)
    if old is None or len(before) + len(after) > _WORDS:
        return [("same", visible(_clip(new)))]
    found: list[tuple[str, str]] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for kind, from_old, to_old, from_new, to_new in matcher.get_opcodes():
        if kind == "equal":
            found.append(("same", visible("".join(after[from_new:to_new]))))
            continue
        if from_old < to_old:
            found.append(("gone", visible("".join(before[from_old:to_old]))))
        if from_new < to_new:
            found.append(("new", visible("".join(after[from_new:to_new]))))
    return found


def _distance(place: tuple[int, int], wished: tuple[int, int]) -> tuple[int, int]:
    return abs(place[0] - wished[0]), abs(place[1] - wished[1])


def _group(scored: ScoredGroup) -> Json:
    answers = answers_of(scored)
    return _problem(scored) | {
        "worker": scored.group.worker,
        "left_out": max(0, len(answers) - _ANSWERS),
        "answers": [_answer(each) for each in answers[:_ANSWERS]],
    }


def _problem(scored: ScoredGroup) -> Json:
    return {
        "question": visible(_clip(question_of(scored))),
        "reference": visible(_clip(scored.group.problem.answer)),
    }


def _answer(shown: ShownAnswer) -> Json:
    return {
        "text": visible(_clip(shown.text)),
        "reward": shown.reward,
        "right": shown.right,
        "cut": shown.cut,
        "cause": None if shown.cause is None else visible(shown.cause),
    }


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _clip(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}… ({len(text) - _TEXT:,} more)"
