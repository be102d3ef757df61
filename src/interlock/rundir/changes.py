"""What a resumed run may do otherwise than it was begun.

Settings of when things are written, of who generates, and what is still ahead: a run that is
finished can be made longer, by steps of its last stage and by stages after it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import msgspec

from interlock.records.moves import Move
from interlock.text import one_line

# Settings that a resumed run may change: when things are written, and who generates. (Another
# generator may round differently: the run goes on, but not bit for bit as it would have.)
FREE_TO_CHANGE = frozenset(
    {
        "name",
        "log",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_stages",
        "generator",
        "fleet",
        "sync",
        "guard",
        "budget",
        "prices",
        "plan",
        "learner.collective_s",
        "unqualified",
    }
)


def with_moves(config: dict[str, Any], moves: Sequence[Move]) -> dict[str, Any]:
    """A run's config as it goes on: its parts are where they have been moved to."""
    found = dict(config)
    for move in moves:
        found[move.part] = {**found.get(move.part, {}), **move.after.settings}
    return found


def steps_ahead(config: Mapping[str, Any], reached: tuple[int, int]) -> frozenset[str]:
    """The numbers of steps in `config` that a run may still be given, by their keys.

    `reached`: the last stage that has begun, and the steps of it that are done. What is behind is
    as it is: the stages after it have learned from it.
    """
    return frozenset(
        f"stage[{index}].steps"
        for index, stage in enumerate(config.get("stage", []))
        if index > reached[0]
        or (index == reached[0] and stage["steps"] + stage.get("rounds", 0) >= reached[1])
    )


def without_new_stages(recorded: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` with as many stages as are recorded, if it has more."""
    stages = given.get("stage", [])
    return given | {"stage": stages[: len(recorded.get("stage", []))]} if stages else given


def stages_taken_away(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Why a recipe with fewer stages is refused."""
    had, has = len(recorded.get("stage", [])), len(given.get("stage", []))
    if has >= had:
        return None
    return f"{had} stages, not {has}"


def is_of_new_stage(name: str, recorded: Mapping[str, Any]) -> bool:
    """Whether an input's name is of a stage that is not recorded yet."""
    place = re.match(r"stage (\d+): ", name)
    return place is not None and int(place[1]) >= len(recorded.get("stage", []))


def differences(recorded: Any, given: Any, key: str, free: Set[str]) -> Iterator[str]:
    """ "key = old, not new" for every leaf that differs, walking in the recorded order."""
    if isinstance(recorded, dict) and isinstance(given, dict):
        for name in [*recorded, *(name for name in given if name not in recorded)]:
            path = f"{key}.{name}" if key else name
            if path not in free:
                yield from differences(recorded.get(name), given.get(name), path, free)
    elif isinstance(recorded, list) and isinstance(given, list) and len(recorded) == len(given):
        for index, (old, new) in enumerate(zip(recorded, given, strict=True)):
            yield from differences(old, new, f"{key}[{index}]", free)
    elif recorded != given:
        old, new = (
            one_line(msgspec.json.encode(value).decode(), 60) for value in (recorded, given)
        )
        yield f"{key} = {old}, not {new}"
