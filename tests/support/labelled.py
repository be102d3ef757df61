"""Labelled rows that reviewers are asked about."""

from interlock.label.marks import LabelAnswer
from interlock.label.rows import LabelRow

MARKS = ("disagreed", "too_hard", "useful", "flaky")


def rows() -> list[LabelRow]:
    return [
        LabelRow(
            id=f"jsonl:{place}",
            question=f"What is {place}? \x1b[31m",
            answer=str(place),
            mark=mark,  # type: ignore[arg-type]
            why="because",
            samples=[LabelAnswer("<b>7</b>", False, 3)],
        )
        for place, mark in enumerate(MARKS)
    ]
