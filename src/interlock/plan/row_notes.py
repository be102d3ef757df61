"""What the notes and the mode of a published run say of how it ran.

    "train TP,CP,EP,PP,VPP [1,1,8,2,n/a]; train batch 512; …" ──told──> ToldInNotes

What they do not say is None, and rows.py assumes it.
"""

import re
from typing import NamedTuple


class ToldInNotes(NamedTuple):
    """Of one run."""

    tensor: int | None  # chips of a generator's replica
    layout: tuple[int, int, int, int] | None  # tensor, context, expert, stages of the learner
    bucket: float | None  # sequences per optimizer step
    recompute: bool | None  # activations
    scored: float | None  # passes for log-probabilities
    ahead: float  # steps whose completions are under way at the same time


def told(notes: str, mode: str) -> ToldInNotes:
    generation = _listed(notes, "generation TP,PP")
    train = _listed(notes, "train TP,CP,EP,PP,VPP")
    # Two rows print ones between, where their recipes have none: both ends are what counts.
    layout = (train[0], train[1], train[-3], train[-2]) if len(train) >= 5 else None
    return ToldInNotes(
        tensor=generation[0] if generation else None,
        layout=layout,
        bucket=_number(r"train batch (\d+)", notes),
        recompute={"kept": False, "recomputed": True}.get(_word(r"activations (\w+)", notes)),
        scored=_number(r"(\d+) log-probability pass", notes),
        ahead=_ahead(mode.lower()),
    )


def _ahead(mode: str) -> float:
    """'8-step off', 'async eta 8' -> 8; 'staleness 0.5', a share of a step's beside it -> 1.5."""
    steps = _number(r"(\d+)-step off", mode) or _number(r"eta (\d+)", mode)
    return max(1.0, steps or 1.0 + (_number(r"staleness (\d+(?:\.\d+)?)", mode) or 0.0))


def _listed(notes: str, what: str) -> list[int]:
    match = re.search(re.escape(what) + r" \[([^\]]*)\]", notes)
    return [int(x) if x.strip().isdigit() else 1 for x in match[1].split(",")] if match else []


def _number(pattern: str, text: str) -> float | None:
    match = re.search(pattern, text)
    return float(match[1]) if match else None


def _word(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""
