"""The lines of metrics.jsonl and events.jsonl as records, whichever version wrote them.

What this version does not know is passed over, and what an older one named or placed otherwise is
moved to where it stands now.
"""

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from interlock.errors import RunError
from interlock.records.coding import from_json
from interlock.records.metrics import EVENT_KINDS, Event, StepMetrics
from interlock.rundir.files import JsonLines

Line = dict[str, Any]
Record = TypeVar("Record", StepMetrics, Event)

# Figures that used to stand at the top of a line: part and name of today.
_MOVED = {
    "reward": ("rollout", "reward"),
    "length": ("rollout", "length"),
    "truncated": ("rollout", "truncated"),
    "generated_tokens": ("rollout", "tokens"),
    "groups": ("rollout", "groups"),
    "groups_skipped": ("rollout", "groups_skipped"),
    "groups_stale": ("rollout", "groups_stale"),
    "groups_set_aside": ("rollout", "groups_set_aside"),
    "staleness_mean": ("rollout", "staleness_mean"),
    "staleness_max": ("rollout", "staleness_max"),
    "verifier_errors": ("rollout", "verifier_errors"),
    "loss": ("update", "loss"),
    "grad_norm": ("update", "grad_norm"),
    "lr": ("update", "lr"),
    "entropy": ("update", "entropy"),
    "kl": ("update", "kl"),
    "clipped_share": ("update", "clipped_share"),
    "corrected_share": ("update", "corrected_share"),
    "vetoed": ("update", "vetoed"),
    "trained_tokens": ("update", "tokens"),
    "bad_steps": ("update", "bad_steps"),
    "seconds_generate": ("seconds", "generate"),
    "seconds_wait": ("seconds", "wait"),
    "seconds_verify": ("seconds", "verify"),
    "seconds_update": ("seconds", "update"),
    "seconds_publish": ("seconds", "publish"),
    "seconds_step": ("seconds", "step"),
    "published_bytes": ("published", "bytes"),
}
_MISMATCH = {"mismatch_k3": "k3", "mismatch_max": "max", "mismatch_share_above_2": "share_above_2"}
_PUBLISHED = {"anchor": "anchors", "delta": "deltas"}
# What only a line of an older version has, if it has anything to be moved.
_OLDER = (b'"seconds_step":', b'"generated_tokens":', b'"mismatch_k3":', b'"anchor":')
_STEP = msgspec.json.Decoder(StepMetrics)
_STEP_SECONDS = attrgetter("seconds.step")


def read_metrics(file: JsonLines) -> list[StepMetrics]:
    """All finished lines, oldest first. Raises RunError naming the line that is none."""
    return [
        _record(file, number, _step(line), StepMetrics)
        for number, line in enumerate(file.read(), start=1)
    ]


def read_events(file: JsonLines) -> list[Event]:
    """All finished lines, oldest first. Raises RunError naming the line that is none."""
    return [
        _record(file, number, _event(line), Event)
        for number, line in enumerate(file.read(), start=1)
    ]


class Lines(msgspec.Struct, frozen=True):
    """Whole lines: the first `size` bytes of what may be a buffer that is used again."""

    buffer: bytes | bytearray
    size: int

    def each(self) -> list[bytes]:
        return bytes(self.buffer[: self.size]).split(b"\n")[:-1]

    def last(self, most: int) -> list[bytes]:
        begin = self.size - 1
        for _ in range(most):
            begin = self.buffer.rfind(b"\n", 0, max(0, begin))
        return bytes(self.buffer[begin + 1 : self.size]).split(b"\n")[:-1]


def whole_lines(lines: Sequence[bytes]) -> Lines:
    joined = b"".join(line + b"\n" for line in lines)
    return Lines(joined, len(joined))


def steps_of(lines: Lines, path: Path, decoder: msgspec.json.Decoder[Any] = _STEP) -> list[Any]:
    """Some lines of a file that is followed while it grows, as StepMetrics or, for a decoder of
    something else, as records that have some of its names; of a line that needs care it is always
    a StepMetrics. Raises RunError when one is none.
    """
    try:
        steps = decoder.decode_lines(memoryview(lines.buffer)[: lines.size])
    except (msgspec.MsgspecError, RecursionError):
        steps = []
    # As many as lines: a blank one, or a record over several, is JSON, but damage here.
    if len(steps) == lines.buffer.count(b"\n", 0, lines.size) and not _lack_seconds(steps):
        return steps
    return [_step_of(line, path, decoder) for line in lines.each()]


def _lack_seconds(steps: Sequence[Any]) -> bool:
    return None in map(_STEP_SECONDS, steps)


def _step_of(line: bytes, path: Path, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        step = decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError):
        # A null for what was not finite, or damage: the careful way tells.
        return _followed(line, path, _step, StepMetrics)
    return _followed(line, path, _step, StepMetrics) if _older(step, line) else step


def _older(step: Any, line: bytes) -> bool:
    """Whether something of this line is to be moved. Nothing of an older one is in its seconds."""
    return step.seconds.step is None and any(name in line for name in _OLDER)


def event_of(line: bytes, path: Path) -> Event:
    """As `steps_of`, of one."""
    return _followed(line, path, _event, Event)


def _followed(line: bytes, path: Path, moved: Callable[[Line], Line], kind: type[Record]) -> Record:
    try:
        return msgspec.convert(moved(from_json(line, dict[str, Any])), kind, str_keys=True)
    except ValueError as error:
        raise RunError(f"{path} has a damaged line ({error}); delete that line") from None


def _record(file: JsonLines, number: int, line: Line, kind: type[Record]) -> Record:
    try:
        return msgspec.convert(line, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise RunError(
            f"{file.path} line {number} is damaged ({error}); delete that line and try again"
        ) from None


def _step(line: Line) -> Line:
    kept = {name: value for name, value in line.items() if name not in _MOVED}
    for name in line.keys() & _MOVED.keys():
        part, own = _MOVED[name]
        kept[part] = _table(kept, part) | {own: line[name]}
    if line.get("mismatch_k3") is not None:
        gap = {own: line[name] for name, own in _MISMATCH.items() if name in line}
        gap["tokens"] = line.get("trained_tokens") or 0
        kept["update"] = _table(kept, "update") | {"mismatch": gap}
    published = _table(kept, "published")
    kept["published"] = {_PUBLISHED.get(name, name): each for name, each in published.items()}
    update = _table(kept, "update")
    if "mismatch" in update:
        kept["update"] = update | {"mismatch": _finite(update["mismatch"])}
    kept["workers"] = {name: _worker(facts) for name, facts in _table(kept, "workers").items()}
    return kept


def _worker(facts: Any) -> Any:
    if not isinstance(facts, dict):
        return facts
    buckets = _table(facts, "mismatch")
    return facts | {"mismatch": {staleness: _finite(gap) for staleness, gap in buckets.items()}}


def _event(line: Line) -> Line:
    known = {name: line[name] for name in Event.__struct_fields__ if name in line}
    more = {name: str(value) for name, value in line.items() if name not in known}
    if known.get("kind") not in EVENT_KINDS:
        more["kind"] = str(known.get("kind", "event"))
        known["kind"] = "other"
    return known | {"facts": _table(known, "facts") | more}


def _table(tree: Line, name: str) -> Line:
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _finite(gap: Any) -> Any:
    """A mismatch is of numbers; null stands for one that JSON does not have.

    A share and a count are always finite: with null for these the line is damaged.
    """
    if not isinstance(gap, dict):
        return gap
    unbounded = {name: math.inf for name in ("k3", "max") if gap.get(name, 0.0) is None}
    return gap | unbounded
