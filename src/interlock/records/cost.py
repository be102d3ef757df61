"""What a run has used: chips by stage and role, tokens, bytes, energy, and what that comes to.

    recipes/meter.py ── RunCost ──> cost.json ──> report, live page, terminal, budget

A chip-second is one chip, held for one second. Who holds a chip together with others has its equal
share of it, so those of all roles add up to what the chips were held for: none is counted twice.
Money is low and high, as prices are, and stands by its currency: none is changed into another.
"""

from collections.abc import Iterable, Iterator
from datetime import date as Date
from typing import Annotated

import msgspec
from msgspec import Meta

from interlock.records.coding import Time

STALE_DAYS = 180  # of a price
_A_WHILE_S = 60.0  # of a chip, in which its energy is told, or it never is
_LONG_S = 3600.0  # of a chip, of which at least half is told where all of its kind are seen
_WHOLE = 0.98  # share of the chips' time whose energy was told, from which on it is that of all

Amount = Annotated[float, Meta(ge=0, le=1e18)]
Bytes = Annotated[int, Meta(ge=0, le=10**18)]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$")]
_LAST = 253402300800  # of Time


class HeldChip(msgspec.Struct, frozen=True):
    """A chip that a process has."""

    chip: str = ""  # the name that its driver gives
    place: str = ""  # tells it from every other: its serial, or its host and device
    device: str = ""  # as settings name it there
    serial: str = ""
    host: str = ""


class MemoryPeak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that a process had at a time since it was last asked, in bytes; 0: not told."""

    chip: Bytes = 0  # of its chip's memory; of a CPU's, what is resident
    resident: Bytes = 0  # of its machine's memory

    def __or__(self, other: "MemoryPeak") -> "MemoryPeak":
        """Of two stretches of time."""
        return MemoryPeak(max(self.chip, other.chip), max(self.resident, other.resident))


class ChipPrice(msgspec.Struct, frozen=True):
    """Of one chip for an hour."""

    low: Amount
    high: Amount
    currency: Currency
    date: Date  # of the price, or of when it was read
    source: str

    @property
    def middle(self) -> float:
        return float((self.low * self.high) ** 0.5)

    def stale(self, today: Date) -> bool:
        return (today - self.date).days > STALE_DAYS


class ChipUse(msgspec.Struct):
    """Of the chips of one kind in one role of one stage, in one session."""

    stage: int | None  # None: before the first and after the last, while a model is read or written
    role: str  # "learner", "generator"
    chip: str
    chip_s: Amount = 0.0
    process_s: Amount = 0.0  # of the processes that held them, from each one's start to its end
    busy_s: Amount = 0.0  # of these: updating and publishing; generating and loading weights
    tokens: Amount = 0.0  # learned from; sampled
    bytes: Amount = 0.0  # of weights: published; fetched
    joules: Amount = 0.0
    told_s: Amount = 0.0  # of chip_s, for which the joules were told
    # The most that one of these processes had at a time; 0: nobody told.
    chip_bytes: Amount = 0.0  # of its chip's memory; of a CPU's, what was resident
    resident_bytes: Amount = 0.0  # of its machine's memory

    def __add__(self, other: "ChipUse") -> "ChipUse":
        figures = {name: getattr(self, name) + getattr(other, name) for name in FIGURES}
        peaks = {name: max(getattr(self, name), getattr(other, name)) for name in PEAKS}
        return ChipUse(self.stage, self.role, self.chip, **figures, **peaks)


PEAKS = ("chip_bytes", "resident_bytes")
FIGURES = ("chip_s", "process_s", "busy_s", "tokens", "bytes", "joules", "told_s")


class SessionCost(msgspec.Struct):
    """One process's time on the run, from the call that trains to its end."""

    began: Time  # unix seconds
    seconds: Amount = 0.0  # until the last entry
    ended: bool = False  # False: it goes on, or was killed after the last entry
    uses: list[ChipUse] = []
    prices: dict[str, ChipPrice] = {}  # by chip; one that is not there has none that is known

    def __post_init__(self) -> None:
        if not self.began + self.seconds < _LAST:
            raise ValueError(f"a session of {self.seconds:g} s has no end that a date tells")


class Money(msgspec.Struct, frozen=True):
    low: float = 0.0
    high: float = 0.0

    @property
    def middle(self) -> float:
        return float((self.low * self.high) ** 0.5)

    def __add__(self, other: "Money") -> "Money":
        return Money(self.low + other.low, self.high + other.high)


class RunCost(msgspec.Struct):
    """All sessions of a run; pauses between them are in none."""

    sessions: list[SessionCost] = []

    @property
    def hours(self) -> float:
        return sum(session.seconds for session in self.sessions) / 3600

    @property
    def chip_hours(self) -> float:
        return sum(use.chip_s for use in self._uses()) / 3600

    @property
    def tokens(self) -> float:
        """Sampled, and learned from."""
        return sum(use.tokens for use in self._uses())

    @property
    def kwh(self) -> float:
        """As far as it was told."""
        return sum(use.joules for use in self._uses()) / 3.6e6

    @property
    def energy_told(self) -> float:
        """The share of the chips' time for which the energy is known."""
        held = sum(use.chip_s for use in self._uses())
        return sum(use.told_s for use in self._uses()) / held if held else 0.0

    @property
    def energy_whole(self) -> bool:
        return self.energy_told >= _WHOLE

    def silent(self) -> list[str]:
        """Chips that were held for a while in some role, of whose energy there nobody has told
        anything; or for long, and of less than half: the others are on a machine that is not seen.
        """
        sums: dict[tuple[str, str], ChipUse] = {}
        for use in self._uses():
            key = use.chip, use.role
            sums[key] = sums[key] + use if key in sums else use
        unseen = [
            chip
            for (chip, _), use in sums.items()
            if (use.chip_s >= _A_WHILE_S and not use.told_s)
            or (use.chip_s >= _LONG_S and use.told_s < use.chip_s / 2)
        ]
        return list(dict.fromkeys(unseen))

    def money(self) -> dict[str, Money]:
        """By currency; of chips that have a price."""
        return money_of((use, session.prices) for session in self.sessions for use in session.uses)

    def unpriced(self) -> dict[str, float]:
        """Chip-hours of chips without a price, by chip."""
        found: dict[str, float] = {}
        for session in self.sessions:
            for use in session.uses:
                if use.chip not in session.prices and use.chip_s > 0:
                    found[use.chip] = found.get(use.chip, 0.0) + use.chip_s / 3600
        return found

    def rows(self) -> list[ChipUse]:
        """Of all sessions, by stage, role and chip."""
        found: dict[tuple[int | None, str, str], ChipUse] = {}
        for use in self._uses():
            key = use.stage, use.role, use.chip
            found[key] = found[key] + use if key in found else use
        order = sorted(found, key=lambda key: (key[0] is None, key[0] or 0, key[1] != "learner"))
        return [found[key] for key in order]

    def money_of_row(self, row: ChipUse) -> dict[str, Money]:
        """What that row of `rows` comes to, each session by its own prices."""
        key = row.stage, row.role, row.chip
        return money_of(
            (use, session.prices)
            for session in self.sessions
            for use in session.uses
            if (use.stage, use.role, use.chip) == key
        )

    def cut_off(self, runs: bool = True) -> Iterator[SessionCost]:
        """Those that were killed: counted to their last entry, and no further. `runs`: the last
        one may go on.
        """
        over = self.sessions[:-1] if runs else self.sessions
        return (session for session in over if not session.ended)

    def _uses(self) -> Iterator[ChipUse]:
        return (use for session in self.sessions for use in session.uses)


def money_of(
    uses: Iterable[tuple[ChipUse, dict[str, ChipPrice]]],
) -> dict[str, Money]:
    found: dict[str, Money] = {}
    for use, prices in uses:
        if (price := prices.get(use.chip)) is not None:
            hours = use.chip_s / 3600
            one = Money(hours * price.low, hours * price.high)
            found[price.currency] = found.get(price.currency, Money()) + one
    return found
