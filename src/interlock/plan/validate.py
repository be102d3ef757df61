"""`interlock plan --validate`: every published row recomputed, each family by constants that were
fitted without it.

    rows.py ─> PublishedFigure ─┬─ all: constants as shipped ────> error within
                          └─ all but one family: fit.py ───> error held out

A family is a framework, a mode and a chip. What a fit learns from are rows that state their
lengths; of others only the ratio of two parts, which hangs on no length.
"""

import math
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import NamedTuple

from interlock.plan.chips import data_file
from interlock.plan.constants import Rates, constants, values
from interlock.plan.decode_rows import of_decode
from interlock.plan.doubt import DOUBT, slower, uncertainty
from interlock.plan.fit import Predict, fit
from interlock.plan.rows import Excluded, PublishedFigure, Row, identity, number, of_runs

BEYOND = 0.35  # of a row, which is then to be explained
_HELD_OUT_STEPS = 3
_ASSUMED_LENGTH = "mean length"
_LENGTH_DOUBT = 0.4  # of seconds, as a logarithm, where the mean length is assumed
_PROMPTS = (99.0, 136.0)  # tokens a prompt, as the identity leaves in 32 of 42 rows of NeMo-RL
_FITTED_WITH = ("step", "update", "decode")


class Recomputed(NamedTuple):
    """A row's figure, published and predicted; `error` is relative."""

    row: PublishedFigure
    held_out: float  # seconds, by constants fitted without its family
    within: float  # seconds, by the constants as shipped
    doubt: float  # ln(held_out / low) of the range

    @property
    def error(self) -> float:
        return self.held_out / self.row.seconds - 1.0

    @property
    def inside(self) -> bool:
        """Whether what was published lies in the range."""
        took = math.log(self.row.seconds / self.held_out)
        return -self.doubt <= took <= slower(self.doubt, self.row.chip.proven)

    @property
    def lengths_known(self) -> bool:
        return _ASSUMED_LENGTH not in self.row.assumed


class Validation(NamedTuple):
    rows: list[Recomputed]
    excluded: list[Excluded]
    identities: list["RowIdentity"]
    totals: list["Total"]
    unseen: list[Recomputed]  # rows that nothing was ever fitted on, by the constants as shipped
    unseen_excluded: list[Excluded]

    @property
    def coverage(self) -> float:
        """Share of the published runs with a time that are recomputed."""
        done = len({each.row.run + each.row.family for each in self.rows})
        return done / (done + sum(each.timed for each in self.excluded))


class RowIdentity(NamedTuple):
    """What figures of one row must give together."""

    run: str
    what: str
    stated: float
    computed: float
    holds: bool


class Total(NamedTuple):
    """A sum that was published, from its parts."""

    what: str
    parts: str
    stated: float
    computed: float


def learns_from(rows: Iterable[PublishedFigure]) -> list[tuple[Predict, float]]:
    """What a fit is given: rows with their lengths, and ratios of parts of the others."""
    found: list[tuple[Predict, float]] = []
    others: dict[str, dict[str, PublishedFigure]] = defaultdict(dict)
    known = explained()
    for row in rows:
        if row.run in known and known[row.run].startswith("not fitted"):
            continue
        if _ASSUMED_LENGTH not in row.assumed:
            if row.part in _FITTED_WITH:
                found.append((row.predict, row.seconds))
        else:
            others[row.run][row.part] = row
    for parts in others.values():
        if "update" in parts and "log-probabilities" in parts:
            found.append(_ratio(parts["log-probabilities"], parts["update"]))
    return found


def _ratio(above: PublishedFigure, below: PublishedFigure) -> tuple[Predict, float]:
    def predict(rates: Rates) -> float:
        return above.predict(rates) / below.predict(rates)

    return predict, above.seconds / below.seconds


def priors() -> tuple[Rates, list[float]]:
    """Where each constant begins, and the width about it."""
    table = constants()
    start = {name: table[name].prior or table[name].value for name in Rates._fields}
    return Rates(**start), [table[name].width for name in Rates._fields]


def fitted(rows: Sequence[PublishedFigure]) -> Rates:
    """The constants anew, from their priors."""
    start, widths = priors()
    return fit(learns_from(rows), start, widths, steps=12)


def published(before: str = "") -> tuple[list[PublishedFigure], list[Excluded]]:
    """All rows of the shipped tables that state a time; with "unseen_", of those kept apart."""
    runs, left = of_runs(data_file(f"{before}rl_runs.csv"))
    decoding, not_decoding = of_decode(data_file(f"{before}inference.csv"))
    return runs + decoding, left + not_decoding


def validate(given: Sequence[Row] | None = None) -> Validation:
    """Recompute the shipped rows, or rows from elsewhere by the constants as shipped."""
    usual = values()
    if given is not None:
        rows, left = of_runs(given)
        found = [_recomputed(row, usual, usual) for row in rows]
        return Validation(found, left, identities(given), [], [], [])
    rows, left = published()
    start, widths = priors()
    found = []
    for family in dict.fromkeys(row.family for row in rows):
        others = learns_from(row for row in rows if row.family != family)
        without = fit(others, start, widths, usual, _HELD_OUT_STEPS)
        found += [_recomputed(row, without, usual) for row in rows if row.family == family]
    unseen, unseen_left = published("unseen_")
    apart = [_recomputed(row, usual, usual) for row in unseen]
    said = identities(data_file("rl_runs.csv"))
    return Validation(found, left, said, totals(), apart, unseen_left)


def _recomputed(row: PublishedFigure, without: Rates, usual: Rates) -> Recomputed:
    seconds = row.predict(without)
    doubt = uncertainty(row.predict, without, seconds)
    if _ASSUMED_LENGTH in row.assumed:
        doubt = math.hypot(doubt, DOUBT * _LENGTH_DOUBT)
    return Recomputed(row, seconds, row.predict(usual), doubt)


def identities(rows: Iterable[Row]) -> list[RowIdentity]:
    """What each row says of itself twice; a row that does not hold has a misprint, or counts
    something else.
    """
    found = []
    for row in rows:
        if (rest := identity(row)) is not None:
            found.append(_rate(row, rest))
        found += _products(row)
    return found


def _rate(row: Row, rest: float) -> RowIdentity:
    """Tokens a second and chip, from lengths and with the nearest prompt that is usual."""
    stated, step, chips, sequences, mean = (
        float(row[each])
        for each in (
            *("tokens_s_per_chip", "step_s", "n_chips", "sequences_per_step"),
            "mean_seq_tokens",
        )
    )
    prompt = min(max(rest, _PROMPTS[0]), _PROMPTS[1])
    computed = (mean + prompt) * sequences / (step * chips)
    return _close(row["run"], "tokens / seconds / chips = tokens/s a chip", stated, computed)


def _products(row: Row) -> list[RowIdentity]:
    found = []
    chips, hours, chip_hours, steps, step, cost, price = (
        number(row, each)
        for each in (
            *("n_chips", "hours", "chip_hours", "steps", "step_s", "cost_usd"),
            "usd_per_chip_hour",
        )
    )
    if chips and hours and chip_hours:
        found.append(_close(row["run"], "chips x hours = chip-hours", chip_hours, chips * hours))
    if hours and steps and step and not (number(row, "update_s") or 0):
        found.append(_close(row["run"], "hours / steps = seconds", step, hours * 3600 / steps))
    if cost and price and chip_hours:
        found.append(_close(row["run"], "chip-hours x price = cost", cost, chip_hours * price))
    return found


def _close(run: str, what: str, stated: float, computed: float) -> RowIdentity:
    return RowIdentity(run, what, stated, computed, abs(computed / stated - 1) <= 0.01)


def totals() -> list[Total]:
    """What DeepSeek's models cost, from the parts that were published."""
    rows = {row["run"]: row for row in data_file("rl_runs.csv")}
    zero, second = rows["DeepSeek-R1-Zero RL"], rows["DeepSeek-R1 second RL"]
    price = float(zero["usd_per_chip_hour"])
    data = 5000.0  # chip-hours of R1's SFT data, as the row's check says
    hours = float(zero["chip_hours"]) + float(second["chip_hours"]) + data
    parts = {row["run"]: row for row in data_file("training.csv")}
    before = float(parts["DeepSeek-V3 pretrain"]["chip_hours"])
    longer, after = 119_000.0, float(rows["DeepSeek-V3 post-training"]["chip_hours"])
    v3 = before + longer + after
    return [
        Total(
            "DeepSeek-R1",
            f"(198 + 80) h x 512 + {data:,.0f} = {hours:,.0f} chip-hours x ${price:g}",
            294_000.0,
            hours * price,
        ),
        Total(
            "DeepSeek-V3",
            f"{before:,.0f} + {longer:,.0f} + {after:,.0f} chip-hours x ${price:g}",
            float(parts["DeepSeek-V3 total"]["cost_usd"]),
            v3 * price,
        ),
    ]


def explained() -> dict[str, str]:
    """Why a row is beyond what is asked, or is not fitted with."""
    text = files("interlock.plan").joinpath("data", "explained.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text))


def reason(row: PublishedFigure) -> str | None:
    """Why a row is beyond; a name in the table may have `*` for what differs between rows."""
    known, names = explained(), (f"{row.run}: {row.part}", row.run)
    exact = (known[name] for name in names if name in known)
    alike = (why for each, why in known.items() if any(fnmatchcase(name, each) for name in names))
    return next(exact, None) or next(alike, None)


class Errors(NamedTuple):
    """Of the rows of one family: sizes of relative errors."""

    family: str
    rows: int
    median: float
    ninth: float  # 90th percentile
    worst: float


def errors(family: str, rows: Sequence[Recomputed]) -> Errors:
    sizes = sorted(abs(each.error) for each in rows)
    return Errors(family, len(sizes), statistics.median(sizes), percentile(sizes, 0.9), sizes[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest, by distance; `ordered` rises."""
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])
