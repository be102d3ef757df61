"""The file of labels: JSONL, a row a problem, appended as it is measured. It is a data set itself.

What it was measured with stands beside it, in FILE.setting.json. A file that was measured otherwise
is not added to, and a row whose question has another answer now is told of: nothing is mixed.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from interlock.errors import RunError
from interlock.label.marks import LabelAnswer, Mark
from interlock.records.coding import from_json
from interlock.records.rl import Problem
from interlock.regular import read_regular
from interlock.rundir import JsonLines, storage_errors, write_atomically
from interlock.rundir.locking import locked
from interlock.text import one_line


class LabelSetting(msgspec.Struct, frozen=True, kw_only=True):
    """What pass rates hang on."""

    measured: dict[str, Any]  # the task's settings
    model: str
    weights: str  # sha256 of what it is made of
    inputs: dict[
        str, str
    ] = {}  # sha256 of what else: chat template, verifiers; {}: it was not told
    clock: datetime | None = None  # what a chat template is told, however often it is gone on with
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()
    easy: float = 0.95
    hard: float = 0.0


class Review(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one person says of a row."""

    decision: Literal["accept", "correct", "reject"]
    answer: str | None = None  # the right one, where that is "correct"
    note: str = ""
    time: float = 0.0  # unix seconds


class LabelRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One problem. The other columns are those of a data set: it can be trained on as it is."""

    id: str
    question: str | list[dict[str, Any]]  # turns, where the data have more than the question
    answer: str
    mark: Mark
    why: str
    # Share of right answers among those that were judged.
    pass_rate: Annotated[float, Meta(ge=0, le=1)] | None = None
    answers: Annotated[int, Meta(ge=0)] = 0  # judged
    discarded: int = 0  # not judged, through no fault of theirs
    tokens: float | None = None  # mean of an answer
    cut: float | None = None  # share of the answers that max_tokens ended
    chat_template_kwargs: dict[str, Any] = {}  # what its row tells the chat template
    samples: list[LabelAnswer] = []
    reviews: dict[str, Review] = {}  # by reviewer

    @property
    def turns(self) -> list[dict[str, Any]]:
        """What is asked, as a conversation."""
        if isinstance(self.question, list):
            return self.question
        return [{"role": "user", "content": self.question}]

    @property
    def text(self) -> str:
        """What is asked, as people read it."""
        if isinstance(self.question, str):
            return self.question
        said = ((turn.get("role", ""), turn.get("content") or "") for turn in self.question)
        return "\n\n".join(f"{role}: {content}" for role, content in said)


_SAID = {"weights": "model (its weights are others now)"}


class Labels:
    """The rows that are there, and where the next ones go."""

    def __init__(self, path: Path, setting: LabelSetting) -> None:
        """Begin a file, or go on with one. Raises RunError when it was measured otherwise."""
        self.path = path
        self._file = JsonLines(path)
        there = begun(path)  # what is no file of labels is not repaired
        self.rows = {row.id: row for row in _rows(path)}
        if there:
            _mend(path, self._file)
        if not self.rows:
            write_atomically(_beside(path), msgspec.json.encode(setting) + b"\n")
            return
        if other := _otherwise(_setting(path), setting):
            raise RunError(
                f"{path} was measured otherwise ({other}); give another --out, or the same again"
            )

    def has(self, problem: Problem) -> bool:
        """Raises RunError where it was measured with another answer: the data were edited."""
        row = self.rows.get(problem.id)
        if row is not None and row.answer != problem.answer:
            raise RunError(
                f"{self.path} has the answer {row.answer[:40]!r} for {problem.id}, and the data "
                f"now {problem.answer[:40]!r}; give another --out, or take that row out"
            )
        return row is not None

    def add(self, row: LabelRow) -> None:
        """Durable on return."""
        self._file.append(row)
        self.rows[row.id] = row


def _otherwise(before: LabelSetting, now: LabelSetting) -> str | None:
    """What is not as it was, if anything. Data and model may lie elsewhere than they did."""
    (old, tasks_before), (new, tasks_now) = map(_data_apart, (before.measured, now.measured))
    if old != new:
        return f"its data were {old}"
    if tasks_before != tasks_now:
        return "task"
    for name in LabelSetting.__struct_fields__:
        looked_at = name not in ("measured", "model", "inputs", "clock")
        if looked_at and getattr(before, name) != getattr(now, name):
            return _SAID.get(name, name)
    names = sorted(before.inputs.keys() | now.inputs.keys()) if before.inputs else []
    return next((each for each in names if before.inputs.get(each) != now.inputs.get(each)), None)


def _data_apart(measured: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The last name of a task's data, and its settings without where they and its verifier lie."""
    options = dict(measured.get("options", {}))
    if "verifier" in options:
        options["verifier"] = Path(str(options["verifier"])).name
    return Path(str(options.pop("path", ""))).name, measured | {"options": options}


def begun(path: Path) -> LabelSetting | None:
    """How a file that is there was measured; None: nothing is. Raises RunError when it is no file
    of labels.
    """
    with storage_errors(path.parent):
        there = path.is_file() and path.stat().st_size
    return _setting(path) if there else None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Nobody else writes it meanwhile. Raises RunError when somebody else holds it."""
    with storage_errors(path.parent), open(path.with_name(f"{path.name}.lock"), "a") as lock:
        if not locked(lock):
            raise RunError(
                f"{path} is being labelled or reviewed by another interlock; end that first"
            )
        yield


def read(path: Path) -> tuple[LabelSetting, list[LabelRow]]:
    """A file of labels. Raises RunError when it is none."""
    rows = list(_rows(path))
    if not rows:
        raise RunError(f"there are no labels at {path}; interlock label writes them")
    return _setting(path), rows


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.setting.json")


def _setting(path: Path) -> LabelSetting:
    file = _beside(path)
    try:
        return from_json(read_regular(file), LabelSetting)
    except FileNotFoundError:
        raise RunError(
            f"{file} is gone, which says how {path} was measured; put it back, or label anew with "
            "another --out"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} cannot be read ({error}); put it back from a copy, or label anew with another "
            "--out"
        ) from None


def _rows(path: Path) -> Iterator[LabelRow]:
    """People edit such a file: a byte order mark, blank lines and a last line without its end are
    no part of it, as in data (tasks/rows.py).
    """
    lines = _content(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if _is_torn(path, lines[-1]):  # by a kill: it is measured again
        del lines[-1]
    places: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(path, number, line)
        if (before := places.setdefault(row.id, number)) != number:
            raise RunError(
                f"{path} line {number} repeats the row {row.id} of line {before}; delete one of "
                "them"
            )
        yield row


def _row(path: Path, number: int, line: bytes) -> LabelRow:
    try:
        row = msgspec.convert(from_json(line.decode().encode(), dict[str, Any]), LabelRow)
        for who, said in row.reviews.items():
            if (said.decision == "correct") is (said.answer is None):
                raise msgspec.ValidationError(
                    f"{one_line(who, 100)} says {said.decision!r} with the answer "
                    f"{one_line(repr(said.answer), 40)}: a correction has one, and nothing else"
                )
        return row
    except UnicodeDecodeError:
        raise RunError(f"{path} line {number} is not UTF-8; save the file as UTF-8") from None
    except msgspec.ValidationError as error:
        raise RunError(
            f"{path} line {number} is no row of labels ({error}); give a file that interlock "
            "label wrote, or another --out"
        ) from None
    except ValueError as error:
        raise RunError(
            f"{path} line {number} is damaged ({error}); delete that line and try again"
        ) from None


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None


def _is_torn(path: Path, tail: bytes) -> bool:
    """Whether what stands behind the last line's end is a row that was cut off as it was written.

    Raises RunError where it is something else: no row of ours, which would be lost.
    """
    tail = tail.rstrip(b"\0 \t\r")  # a file system may leave zeros of what it did not write
    if not tail:
        return True
    with suppress(ValueError):
        from_json(tail.removeprefix(b"\xef\xbb\xbf"), dict[str, Any])
        return False
    if not (tail.startswith(b'{"id":') or b'{"id":'.startswith(tail)):
        raise RunError(
            f"{path} ends in what is no row of labels; take that out, or put the file back from a "
            "copy"
        )
    return True


def _mend(path: Path, file: JsonLines) -> None:
    """Let the next row begin a line of its own."""
    tail = _content(path).rpartition(b"\n")[2]
    if _is_torn(path, tail):
        file.repair()
        return
    with storage_errors(path.parent), open(path, "ab") as out:
        out.write(b"\n")
