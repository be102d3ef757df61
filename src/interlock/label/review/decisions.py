"""The rows of a file of labels and what reviewers said of them; saved with every decision.

Whoever reviews has the file to himself; several reviewers ask one server. A decision is on the disk
before the next row is shown. Where another program has changed the file meanwhile, an editor for
one, a decision is refused and nothing is overwritten.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from interlock.errors import ConfigError, RunError
from interlock.label.rows import LabelRow, Review, held, read
from interlock.rundir import storage_errors, write_atomically


class ReviewersAgree(NamedTuple):
    """Of two reviewers, on the rows that both decided on."""

    first: str
    second: str
    rows: int
    share: float  # on which they say the same
    kappa: float  # Cohen (1960): what of it is not chance; not a number where chance explains all


class Decisions:
    """The one who holds the file. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises RunError when it is no file of labels, or somebody else holds it."""
        read(path)  # before anything is made beside it
        self.path = path
        self._stack = ExitStack()
        self._stack.enter_context(held(path))
        self._seen = _state(path)
        _, self.rows = read(path)  # as it is now that no interlock writes
        self._places = {row.id: place for place, row in enumerate(self.rows)}

    def __enter__(self) -> "Decisions":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def decide(self, row: str, reviewer: str, review: Review | None) -> LabelRow:
        """Keep what `reviewer` says of a row, None: nothing any more; durable on return.

        Raises ConfigError for what is no decision, RunError when the disk does not take it.
        """
        name = checked_name(reviewer)
        if row not in self._places:
            raise ConfigError(f"there is no row {row[:60]!r}")
        place = self._places[row]
        reviews = {who: said for who, said in self.rows[place].reviews.items() if who != name}
        if review is not None:
            reviews[name] = _checked(review, self.rows[place])
        changed = replace(self.rows[place], reviews=reviews)
        self.keep({place: changed})
        return changed

    def keep(self, changed: dict[int, LabelRow]) -> None:
        """Rows in place of those there; all of them, or none.

        Raises RunError when the file is no longer what was read, or the disk does not take it.
        """
        if _state(self.path) != self._seen:
            raise RunError(
                f"{self.path} was changed by another program meanwhile; nothing was overwritten: "
                "end this review and begin it again"
            )
        rows = [changed.get(place, row) for place, row in enumerate(self.rows)]
        data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        write_atomically(self.path, data)
        self.rows, self._seen = rows, _state(self.path)


def _state(path: Path) -> tuple[int, int, int] | None:
    """Changes with whatever is written to a file; None: it is gone."""
    with suppress(FileNotFoundError), storage_errors(path.parent):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def checked_name(reviewer: str) -> str:
    """Raises ConfigError for what is no name."""
    name = reviewer.strip()
    if not name or len(name) > 100 or not name.isprintable():
        raise ConfigError("a reviewer has a name of at most 100 characters that print")
    return name


def _checked(review: Review, row: LabelRow) -> Review:
    answer = (review.answer or "").strip() or None
    if review.decision == "correct" and (answer is None or answer == row.answer):
        raise ConfigError("a correction says another answer than the row has")
    if review.decision != "correct":
        answer = None
    return replace(review, answer=answer, note=review.note.strip(), time=time.time())


def settled(row: LabelRow) -> LabelRow | None:
    """The row as its reviewers have it; None where they reject it.

    Raises ValueError where they do not agree. Without a review a row is as it is.
    """
    said = {(each.decision, each.answer) for each in row.reviews.values()}
    if len(said) > 1:
        raise ValueError("its reviewers do not agree")
    for decision, answer in said:
        if decision == "reject":
            return None
        if answer is not None:
            return replace(row, answer=answer)
    return row


def agreements(rows: Sequence[LabelRow]) -> list[ReviewersAgree]:
    """Of each two reviewers who decided on a common row."""
    names = sorted({name for row in rows for name in row.reviews})
    found = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            pairs = [
                (_said(row.reviews[first]), _said(row.reviews[second]))
                for row in rows
                if first in row.reviews and second in row.reviews
            ]
            if pairs:
                found.append(ReviewersAgree(first, second, len(pairs), *_kappa(pairs)))
    return found


def _said(review: Review) -> tuple[str, str | None]:
    return review.decision, review.answer


def _kappa(pairs: Sequence[tuple[object, object]]) -> tuple[float, float]:
    """-> the share of equal pairs, Cohen's kappa"""
    total = len(pairs)
    share = sum(a == b for a, b in pairs) / total
    firsts, seconds = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(firsts[each] * seconds[each] for each in firsts) / total**2
    return share, math.nan if chance == 1 else (share - chance) / (1 - chance)
