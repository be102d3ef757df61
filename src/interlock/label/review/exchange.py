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
        tasks = msgspec.json.decode(content, type=list[dict[str, Any]])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RunError(
            f"this is no JSON export of Label Studio ({error}); export the project as JSON"
        ) from None
    known = {row.id: row for row in rows}
    found: dict[str, dict[str, Review]] = {}
    for number, task in enumerate(tasks, start=1):
        try:
            row = task["data"]["id"]
            if row not in known:
                raise ValueError(f"it is of the row {str(row)[:40]!r}, which is not there")
            reference = task["data"].get("reference", known[row].answer)
            if reference != known[row].answer:
                raise ValueError(
                    f"it shows the reference {str(reference)[:40]!r}, where {row} now has "
                    f"{known[row].answer[:40]!r}"
                )
            for annotation in task.get("annotations", []):
                if not annotation.get("was_cancelled"):
                    said = _review(annotation["result"], reference)
                    who = checked_name(_who(annotation))
                    if found.setdefault(row, {}).setdefault(who, said) != said:
                        raise ValueError(f"{who} says two things of {row}; keep one annotation")
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, ConfigError) as error:
            raise RunError(f"task {number} of the export is not fit: {error}") from None
    return found


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


def _who(annotation: dict[str, Any]) -> str:
    """The reviewer it names, else the account that made it."""
    if name := _text(annotation["result"], _REVIEWER).strip():
        return name
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return f"{who}" if who is not None else "label studio"


def _text(results: list[dict[str, Any]], name: str) -> str:
    """What stands in a control for text; "" where nothing does."""
    said = {each["from_name"]: each["value"] for each in results}
    text = said.get(name, {}).get("text", "")
    return "\n".join(text) if isinstance(text, list) else str(text)


def _review(results: list[dict[str, Any]], reference: str) -> Review:
    said = {each["from_name"]: each["value"] for each in results}
    decision, answer = said[_DECISION]["choices"][0], _text(results, _ANSWER).strip() or None
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
