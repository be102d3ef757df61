"""What `interlock plan --json` said of a run before it was begun, as far as that is compared."""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from interlock.records.sealing import SealedDocument, document_of, is_whole

_Figure = Annotated[float, Meta(ge=0)]


class PlannedRange(msgspec.Struct, frozen=True):
    """Low, middle and high: four chances of five that it lies between."""

    low: _Figure
    middle: _Figure
    high: _Figure


class PlannedStage(msgspec.Struct, frozen=True):
    name: str
    steps: int
    step_s: PlannedRange
    seconds: dict[str, float | None]  # of a step, by part as plan/estimate.py has them
    # Of a process, by its role, on one chip; an older plan has none.
    memory_bytes: dict[str, _Figure | None] = {}

    @property
    def place(self) -> int | None:
        """Of the recipe's stage; one that samples first and then learns is two of a plan's."""
        found = re.match(r"stage (\d{1,9}),", self.name)
        return int(found[1]) if found else None


class PlannedRun(msgspec.Struct, frozen=True):
    """A plan that fits; what it does not know is None."""

    recipe: str
    placement: str
    stages: list[PlannedStage]
    hours: PlannedRange
    chip_hours: PlannedRange
    kwh: PlannedRange
    money: PlannedRange | None = None
    currency: str | None = None


def planned_run(tree: Any) -> PlannedRun:
    """Raises ValueError where it is no plan of ours, was changed, or fits no chips."""
    if document_of(tree) is not SealedDocument.PLAN:
        raise ValueError("it is not what interlock plan --json prints")
    if not is_whole(tree):
        raise ValueError("it was changed since it was made")
    if not tree.get("fits"):
        raise ValueError("its chips do not hold the model")
    return msgspec.convert(tree, PlannedRun)
