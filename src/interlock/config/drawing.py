"""`[stage.task.draw]`: which problems of a task a step is given, by how often they are solved."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from interlock.config.fields import NonNegative, Said, SettingsTable, Share


class DrawSettings(SettingsTable, frozen=True):
    """A problem with pass rate p is drawn by its weight p (1 - p), the variance of its rewards
    (learnability: arXiv 2408.15099, 2502.12272); what nobody has tried, as one with p = 1/2.
    """

    wanted: tuple[Share, Share] = (0.0, 1.0)  # pass rates with a weight, both ends included
    # Of every draw, the chance that all problems which are left are alike: none is starved.
    floor: Annotated[float, Meta(ge=1e-6, le=1)] = 0.1
    # Of a problem's running pass rate, what the newest of its groups counts.
    newest: Annotated[float, Meta(gt=0, le=1)] = 0.5
    retire: NonNegative = 3  # solved groups in a row, after which it is drawn no more; 0: never
    # Of the data: what a model made of each, as `interlock label` writes it. None: "pass_rate",
    # where rows have it.
    column: Said | None = None
    # Of a task that makes its problems: as many are made, and drawn from.
    pool: Annotated[int, Meta(ge=0, le=10**6)] = 0

    def conflicts(self) -> Iterator[str]:
        """As StageSettings.conflicts."""
        low, high = self.wanted
        if low >= high:
            yield f"wanted = [{low:g}, {high:g}] is no range; give the lower pass rate first"
