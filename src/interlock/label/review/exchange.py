"""Labelled rows as other software has them, and decisions that were made there.

to_label_studio   tasks with decisions as annotations: JSON that its import takes
from_label_studio what its export (JSON) says of rows that are there
to_trl            `prompt` (turns) and `solution`, JSONL: rows that no reviewer rejects
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from interlock.errors import ConfigError, RunError
from interlock.label.review.decisions import checked_name, settled
from interlock.label.rows import LabelRow, Review

TASKS, TRL_ROW = b'[\n {\n  "data": {', b'{"prompt":[{"role":'  # how what is written here begins
# Names of the controls in a labelling. The reviewer is one of them: as `completed_by` Label Studio
# takes its own accounts alone, and refuses a whole import for any other name.
_DECISION, _ANSWER, _NOTE, _REVIEWER = "decision", "answer", "note", "reviewer"
INTERFACE = """<View>
  <Header value="Question" size="5"/>
  <Text name="question" value="$question"/>
  <Header value="Reference" size="5"/>
  <Text name="reference" value="$reference"/>
  <Header value="Why it is shown" size="5"/>
  <Text name="why" value="$why"/>
  <Choices name="decision" toName="question" required="true" showInline="true">
    <Choice value="accept" hotkey="a"/>
    <Choice value="correct" hotkey="c"/>
    <Choice value="reject" hotkey="r"/>
  </Choices>
  <TextArea name="answer" toName="question" maxSubmissions="1"
            placeholder="the right answer, where it is corrected; then enter"/>
  <TextArea name="note" toName="question" maxSubmissions="1" placeholder="a note; then enter"/>
  <TextArea name="reviewer" toName="question" maxSubmissions="1"
            placeholder="who says so, if not this account; then enter"/>
</View>
"""


class _Result(msgspec.Struct):
    from_name: str = ""  # a relation has none
    value: dict[str, Any] = {}


class _Annotation(msgspec.Struct):
    result: list[_Result]
    was_cancelled: bool | None = False
    completed_by: int | str | dict[str, Any] | None = None


class _Task(msgspec.Struct):
    """Of an export, what is read here."""

    data: dict[str, Any]
    annotations: list[_Annotation] = []


def to_label_studio(rows: Sequence[LabelRow]) -> list[dict[str, Any]]:
    """Tasks; what reviewers said is an annotation each. For its labelling interface: INTERFACE."""
    return [
        {
            "data": {
                "id": row.id,
                "question": row.text,
                "reference": row.answer,
                "mark": row.mark,
                "why": row.why,
                "samples": [each.text for each in row.samples],
            },
            "annotations": [
                {"result": list(_results(name, review)), "ground_truth": False}
                for name, review in row.reviews.items()
            ],
        }
        for row in rows
    ]


def from_label_studio(content: bytes, rows: Sequence[LabelRow]) -> dict[str, dict[str, Review]]:
    """-> by row, by reviewer, what was said. Raises RunError naming the task that is not fit."""
    try:
        tasks = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=list[_Task])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(
            f"this is no JSON export of Label Studio ({error}); export the project as JSON (not "
            "JSON-MIN or CSV)"
        ) from None
    known = {row.id: row for row in rows}
    found: dict[str, dict[str, Review]] = {}
    for number, task in enumerate(tasks, start=1):
        try:
            row = _row_of(task, known)
            for annotation in task.annotations:
                if annotation.was_cancelled:
                    continue
                said = _review(annotation.result, row.answer)
                who = checked_name(_who(annotation))
                if found.setdefault(row.id, {}).setdefault(who, said) != said:
                    raise ValueError(f"{who} says two things of {row.id}; keep one annotation")
        except (ValueError, ConfigError) as error:
            raise RunError(f"task {number} of the export is not fit: {error}") from None
    return found


def _row_of(task: "_Task", known: dict[str, LabelRow]) -> LabelRow:
    """Raises ValueError where there is no such row, or it has another reference now."""
    id = task.data.get("id")
    row = known.get(id) if isinstance(id, str) else None
    if row is None:
        raise ValueError(f"it is of the row {str(id)[:40]!r}, which is not there")
    reference = task.data.get("reference", row.answer)
    if reference != row.answer:
        raise ValueError(
            f"it shows the reference {str(reference)[:40]!r}, where {row.id} now has "
            f"{row.answer[:40]!r}"
        )
    return row


def to_trl(rows: Sequence[LabelRow]) -> tuple[list[dict[str, Any]], int]:
    """-> rows of `prompt` and `solution`; how many are left out, as their reviewers do not agree

    With the pass rate, where it is of that very solution: a stage may draw by it.
    """
    found, disputed = [], 0
    for row in rows:
        try:
            as_it_is = settled(row)
        except ValueError:
            disputed += 1
            continue
        if as_it_is is not None:
            told: dict[str, Any] = {"prompt": row.turns, "solution": as_it_is.answer, "id": row.id}
            if row.chat_template_kwargs:
                told["chat_template_kwargs"] = row.chat_template_kwargs
            if row.pass_rate is not None and as_it_is.answer == row.answer:
                told["pass_rate"] = row.pass_rate
            found.append(told)
    return found, disputed


def _results(reviewer: str, review: Review) -> Iterator[dict[str, Any]]:
    def result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        return {"from_name": name, "to_name": "question", "type": kind, "value": value}

    yield result(_DECISION, "choices", {"choices": [review.decision]})
    texts = ((_ANSWER, review.answer), (_NOTE, review.note), (_REVIEWER, reviewer))
    for name, text in texts:
        if text:
            yield result(name, "textarea", {"text": [text]})


def _who(annotation: "_Annotation") -> str:
    """The reviewer it names, else the account that made it."""
    if name := _text(annotation.result, _REVIEWER).strip():
        return name
    who = annotation.completed_by
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return f"{who}" if who is not None else "label studio"


def _said(results: "Sequence[_Result]", name: str) -> dict[str, Any]:
    """What stands in a control; {} where nothing does. Raises ValueError where it stands twice."""
    values = [each.value for each in results if each.from_name == name]
    if any(value != values[0] for value in values):
        raise ValueError(f"its annotation has two different {name}s; keep one")
    return values[0] if values else {}


def _text(results: "Sequence[_Result]", name: str) -> str:
    """What stands in a control for text; "" where nothing does."""
    text = _said(results, name).get("text") or []
    lines = text if isinstance(text, list) else [text]
    if not all(isinstance(line, str) for line in lines):
        raise ValueError(f"its {name} is {str(text)[:40]}, no text")
    return "\n".join(lines)


def _review(results: "Sequence[_Result]", reference: str) -> Review:
    chosen = _said(results, _DECISION).get("choices")
    if not isinstance(chosen, list) or len(chosen) != 1:
        raise ValueError(
            f"an annotation of it has {len(chosen) if isinstance(chosen, list) else 'no'} "
            "decisions; choose one of accept, correct and reject, or take the annotation out"
        )
    decision, answer = chosen[0], _text(results, _ANSWER).strip() or None
    if decision != "correct" and answer not in (None, reference):
        raise ValueError(
            f"its decision is {decision!r}, beside the answer {str(answer)[:40]!r}; make that a "
            "correction, or take the answer out"
        )
    try:
        return msgspec.convert(
            {
                "decision": decision,
                "answer": answer if decision == "correct" else None,
                "note": _text(results, _NOTE),
            },
            Review,
        )
    except msgspec.ValidationError as error:
        raise ValueError(f"its decision: {error}") from None
